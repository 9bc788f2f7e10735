"""The demo's built-in pictures: drawn from a seed, split by class, with two bad inputs, and safe to interrupt."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharelock_ray import storage
from sharelock_ray.demo import shapes
from sharelock_ray.encoders.images import Preprocessing, decode_image
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.webdataset import WebDatasetSource

ARGUMENTS = {"seed": 7, "train_images": 120, "test_images_per_class": 2, "image_size": 64, "shards": 3}
PREPROCESSING = Preprocessing(image_size=64, resize=64, interpolation="bicubic")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write_shapes(str(folder), **ARGUMENTS)
    return folder


def read(folder: Path) -> list[Sample]:
    source = WebDatasetSource(urls=str(folder / "*.tar"))
    samples = [sample for shard in source.shards() for sample in source.read(shard)]
    assert all(isinstance(sample, Sample) for sample in samples)
    return samples


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decodes(sample: Sample) -> bool:
    try:
        decode_image(sample.image, PREPROCESSING)
    except OSError:
        return False
    return True


class TestClasses:
    def test_a_label_is_eight_times_the_colour_plus_the_shape(self):
        assert len(shapes.CLASS_NAMES) == 64
        assert shapes.CLASS_NAMES[8 * 5 + 2] == "blue triangle"

    def test_each_colour_and_each_shape_is_held_out_exactly_twice(self):
        assert len(shapes.HELD_OUT) == 16
        assert sorted(label // 8 for label in shapes.HELD_OUT) == [i for i in range(8) for _ in range(2)]
        assert sorted(label % 8 for label in shapes.HELD_OUT) == [i for i in range(8) for _ in range(2)]

    def test_training_classes_are_all_the_others(self):
        assert sorted((*shapes.TRAINING, *shapes.HELD_OUT)) == list(range(64))


class TestScenes:
    def scene(self, **changes: object) -> shapes.Scene:
        settings = {
            "colour": "red",
            "shape": "square",
            "size": "large",
            "background": "black",
            "x": 0.5,
            "y": 0.5,
            "radius": 0.34,
            "rotation": 0.0,
            "brightness": 1.0,
        }
        return shapes.Scene(**(settings | changes))

    def test_the_shape_has_its_colour_and_the_corners_show_the_background(self):
        image = shapes.render(self.scene(), 64)
        assert image.size == (64, 64)
        assert image.getpixel((32, 32)) == shapes.COLOURS["red"]
        assert image.getpixel((0, 0)) == shapes.BACKGROUNDS["black"][0]

    def test_a_ring_is_open_in_the_middle(self):
        image = shapes.render(self.scene(shape="ring"), 64)
        assert image.getpixel((32, 32)) == shapes.BACKGROUNDS["black"][0]

    def test_edges_are_smooth(self):
        colours = shapes.render(self.scene(rotation=20.0), 64).getcolors()
        assert len(colours) > 4

    @pytest.mark.parametrize("label", range(64))
    def test_no_shape_leaves_the_picture(self, label):
        rng = np.random.default_rng(label)
        for _ in range(10):
            scene = shapes.random_scene(label, rng)
            plain = shapes.Scene(**(vars(scene) | {"background": "black"}))
            pixels = np.asarray(shapes.render(plain, 64))
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (border == shapes.BACKGROUNDS["black"][0]).all()

    def test_every_caption_names_the_colour_and_the_shape_in_varied_words(self):
        rng = np.random.default_rng(0)
        scene = self.scene(colour="orange", shape="arrow", size="small", background="beige")
        captions = {shapes.caption(scene, rng) for _ in range(300)}
        assert len(captions) == 10
        assert all("orange" in text and "arrow" in text for text in captions)
        assert 0 < sum("small" in text for text in captions) < 10
        assert 0 < sum("beige" in text for text in captions) < 10
        assert not any("a orange" in text or "a arrow" in text for text in captions)


class TestWrittenSet:
    def test_has_the_shards_the_class_names_and_the_arguments(self, written):
        assert sorted(contents(written)) == [
            "classes.txt",
            "shapes.json",
            "test/00000.tar",
            "train/00000.tar",
            "train/00001.tar",
            "train/00002.tar",
        ]
        assert (written / "classes.txt").read_text().splitlines() == list(shapes.CLASS_NAMES)
        assert storage.read_json(str(written / "shapes.json")) == ARGUMENTS

    def test_training_never_shows_a_held_out_class_and_the_test_shows_nothing_else(self, written):
        train, test = read(written / "train"), read(written / "test")
        assert len(train) == 120
        assert {sample.label for sample in train} == set(shapes.TRAINING)
        assert [sum(sample.label == label for sample in test) for label in shapes.HELD_OUT] == [2] * 16
        assert len(test) == 32

    def test_training_shows_every_colour_and_every_shape(self, written):
        labels = {sample.label for sample in read(written / "train")}
        assert {label // 8 for label in labels} == {label % 8 for label in labels} == set(range(8))

    def test_a_caption_is_about_its_own_class(self, written):
        for sample in read(written / "train") + read(written / "test"):
            for text in sample.captions:
                assert all(word in text for word in shapes.CLASS_NAMES[sample.label].split())

    def test_training_has_one_broken_image_and_one_sample_without_a_caption(self, written):
        train = read(written / "train")
        broken = [sample.key for sample in train if not decodes(sample)]
        uncaptioned = [sample.key for sample in train if not sample.captions]
        assert len(broken) == len(uncaptioned) == 1
        assert broken != uncaptioned

    @pytest.mark.parametrize("train_images", [2, 3, 4, 5])
    def test_even_the_smallest_set_has_both_bad_inputs(self, tmp_path, train_images):
        shapes.write_shapes(str(tmp_path), **(ARGUMENTS | {"train_images": train_images, "shards": 2}))
        train = read(tmp_path / "train")
        assert sum(not decodes(sample) for sample in train) == 1
        assert sum(not sample.captions for sample in train) == 1

    def test_the_test_split_has_no_bad_input(self, written):
        assert all(decodes(sample) and sample.captions for sample in read(written / "test"))

    def test_pictures_have_the_asked_size(self, tmp_path):
        shapes.write_shapes(str(tmp_path), **(ARGUMENTS | {"train_images": 3, "image_size": 96}))
        sizes = {Image.open(io.BytesIO(sample.image)).size for sample in read(tmp_path / "test")}
        assert sizes == {(96, 96)}


class TestWriting:
    def test_the_same_arguments_give_the_same_bytes(self, written, tmp_path):
        shapes.write_shapes(str(tmp_path), **ARGUMENTS)
        assert contents(tmp_path) == contents(written)

    def test_another_seed_gives_other_pictures(self, written, tmp_path):
        shapes.write_shapes(str(tmp_path), **(ARGUMENTS | {"seed": 8}))
        assert contents(tmp_path)["test/00000.tar"] != contents(written)["test/00000.tar"]

    def test_the_splits_share_no_picture(self, written):
        train, test = ({sample.image for sample in read(written / split)} for split in ("train", "test"))
        assert not train & test

    def test_a_second_call_touches_nothing(self, tmp_path):
        shapes.write_shapes(str(tmp_path), **ARGUMENTS)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        shapes.write_shapes(str(tmp_path), **ARGUMENTS)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_other_arguments_are_refused(self, tmp_path):
        shapes.write_shapes(str(tmp_path), **ARGUMENTS)
        before = contents(tmp_path)
        with pytest.raises(RequestError, match="seed 7, not 8") as error:
            shapes.write_shapes(str(tmp_path), **(ARGUMENTS | {"seed": 8}))
        assert "\n" not in str(error.value)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("changes", [{"shards": 0}, {"shards": 121}, {"train_images": 1}])
    def test_too_few_samples_are_refused(self, tmp_path, changes):
        with pytest.raises(RequestError):
            shapes.write_shapes(str(tmp_path), **(ARGUMENTS | changes))


class TestInterrupted:
    @pytest.fixture
    def interrupted(self, tmp_path, monkeypatch) -> Path:
        """A folder where writing was killed before the third tar."""
        write = storage.write_bytes

        def until_third(uri: str, data: bytes) -> None:
            if uri.endswith("train/00002.tar"):
                raise KeyboardInterrupt
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", until_third)
        with pytest.raises(KeyboardInterrupt):
            shapes.write_shapes(str(tmp_path), **ARGUMENTS)
        monkeypatch.undo()
        return tmp_path

    def test_is_not_complete(self, interrupted):
        assert not (interrupted / "shapes.json").exists()

    def test_continuing_keeps_the_tars_and_ends_as_if_never_interrupted(self, interrupted, written):
        kept = interrupted / "train" / "00000.tar"
        before = kept.stat().st_mtime_ns
        shapes.write_shapes(str(interrupted), **ARGUMENTS)
        assert kept.stat().st_mtime_ns == before
        assert contents(interrupted) == contents(written)

    def test_continuing_with_other_arguments_is_refused_so_that_tars_never_mix(self, interrupted):
        with pytest.raises(RequestError, match="other arguments"):
            shapes.write_shapes(str(interrupted), **(ARGUMENTS | {"image_size": 32}))
