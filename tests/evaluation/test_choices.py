"""Examples of compositional benchmarks, in the layouts of their authors."""

import json
from pathlib import Path

import pytest

import support
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import BenchmarkImages, read_benchmark
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


class TestShipped:
    """The files of the authors are read as they store them, and name images by their keys in the source."""

    def check(self, name: str, folder: Path, expected: list[Choice]) -> None:
        benchmark = read_benchmark(name)
        found = benchmark.choices_in(str(folder))
        assert found == expected
        source = BenchmarkImages(benchmark, str(folder))
        keys = {key for shard in source.shards() for key in source.keys_of(shard)}
        assert {key for each in found for key in each.images} <= keys

    def with_images(self, folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(support.jpeg())
        return folder

    def test_winoground(self, tmp_path: Path) -> None:
        folder = self.with_images(tmp_path, "images/ex_0_img_0.png", "images/ex_0_img_1.png")
        record = {
            "id": 0,
            "image_0": "ex_0_img_0",
            "image_1": "ex_0_img_1",
            "caption_0": "an old",
            "caption_1": "old an",
        }
        (folder / "examples.jsonl").write_text(json.dumps({**record, "collapsed_tag": "Object"}) + "\n")
        images = ("images/ex_0_img_0.png", "images/ex_0_img_1.png")
        self.check("winoground", folder, [Choice("Object", images, ("an old", "old an"))])

    def test_sugarcrepe(self, tmp_path: Path) -> None:
        folder = self.with_images(tmp_path, "val2017/000000085329.jpg")
        record = {"filename": "000000085329.jpg", "caption": "A cat.", "negative_caption": "A dog."}
        kinds = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
        for kind in kinds:
            (folder / f"{kind}.json").write_text(json.dumps({"0": record}))
        expected = [Choice(kind, ("val2017/000000085329.jpg",), ("A cat.", "A dog.")) for kind in kinds]
        self.check("sugarcrepe", folder, expected)

    def test_cola_has_lists_with_links(self, tmp_path: Path) -> None:
        folder = self.with_images(tmp_path, "images/2382038.jpg", "images/2334343.jpg")
        link = "https://cs-people.bu.edu/array/data/vg_gqa_images"
        left, right = "blue car to the right of black car", "black car to the right of blue car"
        record = [f"{link}/2382038.jpg", left, f"{link}/2334343.jpg", right]
        (folder / "COLA_multiobjects_matching_benchmark.json").write_text(json.dumps([record]))
        self.check("cola", folder, [Choice("", ("images/2382038.jpg", "images/2334343.jpg"), (left, right))])

    def test_mmvp_vlm_has_a_row_per_image_and_a_folder_per_pattern(self, tmp_path: Path) -> None:
        names = ("Camera Perspective/1.jpg", "Camera Perspective/2.jpg", "Color/3.jpg", "Color/4.jpg")
        folder = self.with_images(tmp_path, *(f"MLLM_VLM Images/{name}" for name in names))
        (folder / "Questions.csv").write_text(
            "Question ID,Type,Statement\n"
            '1,Camera Perspective,"a dog, from above"\n2,Camera Perspective,"a dog, from below"\n'
            "3,Color,red flowers\n4,Color,white flowers\n"
        )
        expected = [
            Choice("Camera Perspective", names[:2], ("a photo of a dog, from above", "a photo of a dog, from below")),
            Choice("Color", names[2:], ("a photo of red flowers", "a photo of white flowers")),
        ]
        self.check("mmvp-vlm", folder, expected)

    @pytest.mark.parametrize(("name", "kind"), [("relation", "to the left of"), ("attribution", "")])
    def test_aro_has_a_box_of_an_image(self, tmp_path: Path, name: str, kind: str) -> None:
        folder = self.with_images(tmp_path, "images/2414605.jpg", "images/1.jpg")
        captions = ("the cup is to the left of the plate", "the plate is to the left of the cup")
        record = {"image_id": "2414605", "image_path": "2414605.jpg", "relation_name": "to the left of"}
        record |= dict(zip(("true_caption", "false_caption"), captions, strict=True))
        record |= {"bbox_x": 3, "bbox_y": 5, "bbox_w": 20, "bbox_h": 10}
        (folder / f"visual_genome_{name}.json").write_text(json.dumps([record]))
        self.check(f"aro-{name}", folder, [Choice(kind, ("images/2414605.jpg@3,5,20,10",), captions)])


def test_records_that_do_not_make_whole_examples_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "choices.csv"
    file.write_text("image,caption\na,one\nb,two\nc,three\n")
    spec = Choices(file=str(file), images=("image",), captions=("caption",), records=2)
    with pytest.raises(RequestError, match=r"choices.csv has 3 records: 2 make an example"):
        read_choices(spec, images=2)


def test_a_key_with_a_field_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    file.write_text(json.dumps([PAIR]))
    with pytest.raises(RequestError, match=r"record 0 has no field `folder`"):
        read_choices(two(file, image_key="{folder}/{}"), images=2)


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
