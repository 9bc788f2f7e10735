"""Examples of compositional benchmarks, in the layouts of their authors."""

import json
from pathlib import Path

import pytest

from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.choices import Choice, Choices, read_choices

PAIR = {"image_0": "a", "image_1": "b", "caption_0": "mug in grass", "caption_1": "grass in mug", "tag": "swap"}


def two(file: Path, **fields: object) -> Choices:
    defaults: dict[str, object] = {"images": ("image_0", "image_1"), "captions": ("caption_0", "caption_1")}
    return Choices(file=str(file), **(defaults | fields))


def test_fields_of_json_lines_as_in_winoground(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR | {"tag": "add"}) + "\n")
    found = read_choices(two(file, image_key="images/{}.png", kind="tag"), images=2)
    assert found[0] == Choice("swap", ("images/a.png", "images/b.png"), ("mug in grass", "grass in mug"))
    assert [each.kind for each in found] == ["swap", "add"]


def test_an_object_of_records_in_a_file_per_kind_as_in_sugarcrepe(tmp_path: Path) -> None:
    for kind in ("add_att", "swap_obj"):
        record = {"filename": "1.jpg", "caption": f"true {kind}", "negative_caption": "false"}
        (tmp_path / f"{kind}.json").write_text(json.dumps({"0": record, "7": record}))
    spec = Choices(
        file=f"{tmp_path}/{{kind}}.json",
        images=("filename",),
        captions=("caption", "negative_caption"),
        kinds=("add_att", "swap_obj"),
    )
    found = read_choices(spec, images=1)
    assert [each.kind for each in found] == ["add_att", "add_att", "swap_obj", "swap_obj"]
    assert found[2] == Choice("swap_obj", ("1.jpg",), ("true swap_obj", "false"))


def test_one_field_may_hold_the_list(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    file.write_text(json.dumps([{"images": ["1.jpg"], "captions": ["a b c", "c b a", "b a c"]}]))
    found = read_choices(Choices(file=str(file), images="images", captions="captions"), images=1)
    assert found == [Choice("", ("1.jpg",), ("a b c", "c b a", "b a c"))]


def test_a_table(tmp_path: Path) -> None:
    file = tmp_path / "choices.csv"
    file.write_text('image_0,image_1,caption_0,caption_1\na,b,"one, two",two\n')
    assert read_choices(two(file), images=2) == [Choice("", ("a", "b"), ("one, two", "two"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no examples"),
        ([{**PAIR, "caption_1": None}], r"record 0: `caption_0`, `caption_1` must hold text"),
        ([PAIR, {"image_0": "a"}], r"record 1 has no field `image_1`"),
        (["text"], r"record 0 has no field `image_0`"),
        (7, "cannot be read as a list of examples"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "choices.json"
    file.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=message):
        read_choices(two(file), images=2)


@pytest.mark.parametrize(
    ("images", "captions", "count", "message"),
    [
        (["1.jpg"], ["a", "b"], 2, "1 images and 2 captions: 2 images and 2 captions are needed"),
        (["1.jpg"], ["a"], 1, "1 images and 1 captions: 1 image and 2 captions or more are needed"),
        (["1.jpg", "2.jpg"], ["a", "b", "c"], 2, "2 images and 3 captions: 2 images and 2 captions are needed"),
    ],
)
def test_numbers_that_the_task_has_no_rule_for(
    tmp_path: Path, images: list[str], captions: list[str], count: int, message: str
) -> None:
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"images": images, "captions": captions}))
    with pytest.raises(RequestError, match=message):
        read_choices(Choices(file=str(file), images="images", captions="captions"), images=count)


def test_a_file_that_is_no_json_or_absent_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no examples at"):
        read_choices(two(tmp_path / "nowhere.json"), images=2)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RequestError, match=r"x.json cannot be read as a list of examples"):
        read_choices(two(tmp_path / "x.json"), images=2)
