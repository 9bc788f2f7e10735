"""Translations are a source of texts: one shard per language, and one sample per image that has captions in it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import change
from sharelock_ray.sources.translations import TranslationSource

ROWS = [
    ("00000/a", "fr", "un chat"),
    ("00000/a", "de", "eine Katze"),
    ("00000/b", "de", "ein Hund"),
    ("00000/a", "de", "ein Kater"),
    ("00000/b", "fr", ""),
]


def table(path: Path, rows: list[tuple[Any, ...]] = ROWS, **changes: Any) -> str:
    columns = dict(zip(("key", "language", "caption"), map(list, zip(*rows, strict=True)), strict=True)) | changes
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_captions_of_an_image_in_a_language_are_one_sample(tmp_path: Path) -> None:
    source = TranslationSource.of_table(table(tmp_path / "captions.parquet"))
    samples = support.read_source(source)
    assert [(sample.key, sample.captions, sample.image) for sample in samples] == [
        ("de/00000/a", ("eine Katze", "ein Kater"), None),
        ("de/00000/b", ("ein Hund",), None),
        ("fr/00000/a", ("un chat",), None),
    ]
    assert [key for shard in source.shards() for key in source.keys_of(shard)] == [sample.key for sample in samples]
    assert [shard.name for shard in source.shards()] == ["de", "fr"]


def test_some_languages_can_be_chosen(tmp_path: Path) -> None:
    source = TranslationSource.of_table(table(tmp_path / "captions.parquet"), ("fr",))
    assert [sample.key for sample in support.read_source(source)] == ["fr/00000/a"]


def test_other_captions_are_another_version(tmp_path: Path) -> None:
    source = TranslationSource.of_table(table(tmp_path / "captions.parquet"))
    other = TranslationSource.of_table(table(tmp_path / "captions.parquet", [*ROWS[:2], *ROWS[3:]]))
    german, french = source.shards()
    assert change(source, german) is None
    assert change(other, german) is not None
    assert change(other, french) is None


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([("00000/a", "de/at", "x")], {}, "row 0 needs a key and a language without `/`"),
        ([ROWS[0], (None, "de", "x")], {}, "row 1 needs a key"),
        (ROWS, {"caption": [[]] * len(ROWS)}, "is not a Parquet table with the columns key, language, caption"),
    ],
)
def test_a_wrong_table_is_one_line(
    tmp_path: Path, rows: list[tuple[Any, ...]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        TranslationSource.of_table(table(tmp_path / "captions.parquet", rows, **changes))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "captions.parquet").write_text("key,language,caption")
    with pytest.raises(RequestError, match="is not a Parquet table"):
        TranslationSource.of_table(str(tmp_path / "captions.parquet"))
    with pytest.raises(RequestError, match="no table of translations at"):
        TranslationSource.of_table(str(tmp_path / "absent.parquet"))
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "captions.parquet")
    with pytest.raises(RequestError, match="is not a Parquet table"):
        TranslationSource.of_table(str(tmp_path / "captions.parquet"))


def test_a_language_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no captions in it, ja: it has de, fr"):
        TranslationSource.of_table(table(tmp_path / "captions.parquet"), ("ja", "de", "it"))
