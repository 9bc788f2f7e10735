"""A table of attributes is read as it is documented, and each mistake in one is one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.attributes import COLUMNS, codes, read_attributes

Row = tuple[str | None, str | None, str | None, str | None]
IMAGE: Row = ("a.jpg", None, "colour of the cat", "black")
TEXT: Row = (None, "a white cat", "colour of the cat", "white")


def write(folder: Path, *rows: Row) -> str:
    columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(COLUMNS)}
    pq.write_table(pa.table(columns), folder / "attributes.parquet")
    return str(folder / "attributes.parquet")


def test_items_have_their_attributes(tmp_path: Path) -> None:
    found = read_attributes(write(tmp_path, IMAGE, TEXT, (None, "a white cat", "place of the dog", "left")))
    assert found.images == {"a.jpg": {"colour of the cat": "black"}}
    assert found.texts == {"a white cat": {"colour of the cat": "white", "place of the dog": "left"}}
    assert found.values() == {"colour of the cat": ["black", "white"], "place of the dog": ["left"]}


def test_what_an_item_lacks_is_absent() -> None:
    items = [{"colour": "white"}, {"place": "left"}, {"colour": "black"}]
    np.testing.assert_array_equal(codes(items, "colour", ["black", "white"]), [2, 0, 1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([IMAGE, ("a.jpg", "a cat", "colour", "red")], "row 1 needs an image or a text"),
        ([IMAGE, (None, None, "colour", "red")], "row 1 needs an image or a text"),
        ([("a.jpg", None, "colour", None)], "row 0 needs an image or a text, an attribute and a value"),
        ([IMAGE, TEXT, ("a.jpg", None, "colour of the cat", "red")], "row 2 gives the colour of the cat of 'a.jpg' a"),
        ([IMAGE], "has no attributes of texts"),
        ([TEXT], "has no attributes of images"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_attributes(write(tmp_path, *rows))
    assert "\n" not in str(error.value)


def test_another_file_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name, message in (("other", "image"), ("text", "is not a Parquet table"), ("absent", "absent")):
        with pytest.raises(RequestError, match=message) as error:
            read_attributes(str(tmp_path / f"{name}.parquet"))
        assert "\n" not in str(error.value)
