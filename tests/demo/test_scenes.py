"""Scenes of two objects: captions say what is drawn, tests show pairs that training never shows, and a choice differs
in the one respect that its kind names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sharelock_ray.demo import scenes
from sharelock_ray.demo.scenes import Thing, TwoThings
from sharelock_ray.demo.shapes import COLOURS
from sharelock_ray.encoders.images import Preprocessing, decode_image
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.attributes import read_attributes
from sharelock_ray.evaluation.benchmark import read_benchmark
from sharelock_ray.recipe.schema import ShapesSpec
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.webdataset import WebDatasetSource

ARGUMENTS = {
    "seed": 7,
    "train_images": 60,
    "test_images_per_class": 1,
    "image_size": 64,
    "shards": 2,
    "choices": 8,
}
SCENE = TwoThings(Thing("red", "circle"), "left of", Thing("blue", "square"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_scenes(str(folder), **ARGUMENTS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def things(caption: str) -> set[tuple[str, str]]:
    """The colour and the shape of both things of a caption."""
    words = caption.rstrip(".").split()
    return {(word, words[place + 1]) for place, word in enumerate(words) if word in COLOURS}


class TestScenes:
    def test_attributes_are_the_same_from_either_side(self) -> None:
        assert SCENE.attributes() == SCENE.turned().attributes()
        assert SCENE.attributes() == {
            "colour of the circle": "red",
            "place of the circle": "left",
            "colour of the square": "blue",
            "place of the square": "right",
        }

    def test_exchanges_lead_from_a_held_out_pair_to_another(self) -> None:
        rng = np.random.default_rng(0)
        for held_out in (True, False):
            for _ in range(50):
                scene = scenes.random_scene(rng, held_out)
                assert scene.held_out == scene.turned().held_out == held_out
                assert scene.with_swapped_colours().held_out == scene.with_swapped_places().held_out == held_out

    def test_captions_name_the_article_the_things_and_the_relation(self) -> None:
        orange = TwoThings(Thing("orange", "arrow"), "above", Thing("blue", "square"))
        assert scenes.caption(orange, "there is {first} {relation} {second}.") == (
            "there is an orange arrow above a blue square."
        )

    @pytest.mark.parametrize(("relation", "axis"), [("left of", 1), ("above", 0)])
    def test_each_thing_is_in_its_own_half(self, relation: str, axis: int) -> None:
        scene = TwoThings(Thing("red", "circle"), relation, Thing("blue", "square"))
        for seed in range(10):
            data = scenes.draw(scene, 64, np.random.default_rng(seed))
            pixels = decode_image(data, Preprocessing(image_size=64, resize=64, interpolation="bicubic"))
            red, blue = pixels[..., 0].astype(int), pixels[..., 2].astype(int)
            # Clearly of the colour: no background is.
            for place, (more, less) in enumerate(((red, blue), (blue, red))):
                where = np.argwhere(more > less + 90)[:, axis]
                assert len(where) > 50
                assert (where.max() <= 34) if place == 0 else (where.min() >= 29)


class TestWrittenSet:
    def test_has_splits_choices_and_attributes(self, written: Path) -> None:
        assert sorted(contents(written)) == [
            "attributes.parquet",
            "replace.jsonl",
            "replace/replace.tar",
            "shapes.json",
            "swap.jsonl",
            "swap/swap.tar",
            "test/00000.tar",
            "train/00000.tar",
            "train/00001.tar",
        ]

    def test_training_never_shows_two_things_of_the_test_together(self, written: Path) -> None:
        shown: dict[str, set[frozenset[tuple[str, str]]]] = {}
        for split in ("train", "test"):
            source = WebDatasetSource(urls=str(written / split / "*.tar"))
            samples = [each for shard in source.shards() for each in source.read(shard)]
            texts = [text for each in samples if isinstance(each, Sample) for text in each.captions]
            shown[split] = {frozenset(things(text)) for text in texts}
        said = [
            text
            for name in ("swap", "replace")
            for each in lines(written / f"{name}.jsonl")
            for text in each["captions"][:1]
        ]
        shown["choices"] = {frozenset(things(text)) for text in said}
        assert all(len(pair) == 2 for pairs in shown.values() for pair in pairs)
        assert not shown["train"] & (shown["test"] | shown["choices"])

    def test_swaps_have_the_same_words(self, written: Path) -> None:
        found = lines(written / "swap.jsonl")
        assert [each["kind"] for each in found] == ["swap_attribute"] * 8 + ["swap_relation"] * 8
        for each in found:
            first, second = each["captions"]
            assert first != second
            assert sorted(first.replace("an ", "a ").rstrip(".").split()) == sorted(
                second.replace("an ", "a ").rstrip(".").split()
            )
            assert (things(first) == things(second)) == (each["kind"] == "swap_relation")

    def test_replacements_change_one_word(self, written: Path) -> None:
        for each in lines(written / "replace.jsonl"):
            true, *wrong = each["captions"]
            assert len(each["images"]) == 1
            assert len(set(wrong)) == 3
            same = [len(things(true) & things(text)) for text in wrong]
            assert same == ([2, 2, 2] if each["kind"] == "replace_relation" else [1, 1, 1])

    def test_attributes_tell_what_each_image_shows_and_each_caption_says(self, written: Path) -> None:
        known = read_attributes(str(written / "attributes.parquet"))
        for name in ("swap", "replace"):
            keys = {key for each in lines(written / f"{name}.jsonl") for key in each["images"]}
            source = WebDatasetSource(urls=str(written / name / "*.tar"))
            assert keys == {key for shard in source.shards() for key in source.keys_of(shard)}
            for each in lines(written / f"{name}.jsonl"):
                said = [known.texts[text] for text in each["captions"]]
                assert [known.images[key] for key in each["images"]] == said[: len(each["images"])]
                assert all(other != said[0] for other in said[1:])
                assert {(v, k.split()[-1]) for k, v in said[0].items() if k.startswith("colour")} == things(
                    each["captions"][0]
                )

    def test_the_shipped_benchmarks_read_it(self, written: Path) -> None:
        for name in ("scenes-swap", "scenes-replace"):
            benchmark = read_benchmark(name)
            assert len(benchmark.choices_in(str(written))) in (16, 24)
            assert benchmark.attributes_in(str(written)) is not None
            assert benchmark.source(str(written)).shards()

    def test_the_same_arguments_give_the_same_bytes(self, written: Path, tmp_path: Path) -> None:
        scenes.write_scenes(str(tmp_path), **ARGUMENTS)
        assert contents(tmp_path) == contents(written)

    def test_other_arguments_are_refused(self, written: Path) -> None:
        with pytest.raises(RequestError, match="choices 8, not 9"):
            scenes.write_scenes(str(written), **(ARGUMENTS | {"choices": 9}))

    def test_too_few_samples_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="at least 2 training images"):
            scenes.write_scenes(str(tmp_path), **(ARGUMENTS | {"train_images": 1, "shards": 1}))


def test_an_option_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="objects: 2"):
        ShapesSpec(choices=9)
    assert ShapesSpec(objects=2, choices=9).choices == 9
