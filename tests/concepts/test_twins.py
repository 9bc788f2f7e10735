"""Visual twins: near duplicates, classes that look alike, and classes of the encoder's pretraining are told apart."""

from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.twins import (
    Pictures,
    Pretraining,
    PrototypeSimilarity,
    duplicate_images,
    pretraining_of,
)
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.writer import EncodedChunk

WIDTH = 64
SPEC = VisionSpec(name="signal", model="resnet18.a1_in1k", stored_dtype="float32")


def concepts(*names: str) -> tuple[Concept, ...]:
    return tuple(Concept(name=name) for name in names)


def pictures(folder: Path, values: np.ndarray, labels: list[int | None], *names: str, spec=SPEC) -> Pictures:
    keys = [f"{folder.name}/{i:04d}" for i in range(len(values))]
    chunk = EncodedChunk({"key": keys, "label": labels}, values.astype(np.float32))
    return Pictures(open_features(support.write_parts(str(folder), spec, [[chunk]])), concepts(*names))


def classes(centres: np.ndarray, images: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, list[int]]:
    """Features around the centre of each class, with a large common mean."""
    generator = np.random.default_rng(seed)
    values = np.repeat(centres, images, axis=0) + noise * generator.normal(size=(len(centres) * images, WIDTH)) + 20
    return values, np.repeat(np.arange(len(centres)), images).tolist()


def centres(count: int, seed: int = 9) -> np.ndarray:
    return 3 * np.random.default_rng(seed).normal(size=(count, WIDTH))


@pytest.fixture
def seen(tmp_path: Path) -> Pictures:
    return pictures(tmp_path / "seen", *classes(centres(4)[:2], 40, 0), "dog", "cat")


class TestNearDuplicates:
    def test_are_all_found_and_no_other(self, seen, tmp_path):
        values, labels = classes(centres(4)[2:], 60, 1)
        own = seen.features.embeddings.numpy()
        planted = {i: i % 80 for i in range(0, 120, 2)}
        for row, twin in planted.items():
            # Compressed again, features differ a little.
            values[row] = own[twin] + 0.05 * np.random.default_rng(row).normal(size=WIDTH)
        unseen = pictures(tmp_path / "unseen", values, labels, "crane", "goose")
        found = duplicate_images(unseen, unseen.rows(unseen.listed), seen, seen.rows(seen.listed))
        assert {each.key for each in found.images} == {f"unseen/{row:04d}" for row in planted}
        first = found.images[1].evidence
        assert (first.rule, first.seen, first.unseen) == ("duplicate_image", "seen/0002 (dog)", "unseen/0002 (crane)")
        assert first.detail.startswith("the test image unseen/0002 (crane) is a near duplicate of seen/0002 (dog)")
        assert first.score >= found.threshold
        assert found.compared == (120, 80)

    def test_are_of_the_concepts_that_are_asked(self, seen, tmp_path):
        unseen = pictures(tmp_path / "unseen", seen.features.embeddings.numpy(), [0] * 40 + [1] * 40, "crane", "goose")
        found = duplicate_images(
            unseen, unseen.rows(concepts("goose")), seen, seen.rows(concepts("dog")), "unseen", 0.99
        )
        assert found.images == ()
        found = duplicate_images(
            unseen, unseen.rows(concepts("crane")), seen, seen.rows(concepts("dog")), "unseen", 0.99
        )
        assert len(found.images) == 40
        assert (found.rule, found.threshold) == ("given", 0.99)

    def test_of_training_may_be_asked_for(self, seen, tmp_path):
        unseen = pictures(tmp_path / "unseen", seen.features.embeddings.numpy()[:3], [None] * 3)
        found = duplicate_images(seen, seen.rows(seen.listed), unseen, unseen.rows(()), "seen", 0.999)
        assert [each.key for each in found.images] == [f"seen/{row:04d}" for row in range(3)]
        assert found.images[0].evidence.detail.startswith("the training image seen/0000 (dog) is a near duplicate of")

    def test_of_no_images_are_refused(self, seen):
        with pytest.raises(RequestError, match="has no images of the concepts"):
            duplicate_images(seen, seen.rows(concepts("goose")), seen, seen.rows(seen.listed))

    def test_of_two_encoders_are_refused(self, seen, tmp_path):
        other = pictures(tmp_path / "o", np.ones((2, WIDTH)), [0, 0], "dog", spec=VisionSpec(name="signal", model="x"))
        with pytest.raises(RequestError, match="compare features of one encoder"):
            duplicate_images(other, np.arange(2), seen, np.arange(2))


class TestPrototypes:
    def finder(self, tmp_path: Path, unseen_centres: np.ndarray, names: list[str], **options) -> PrototypeSimilarity:
        base = centres(20)
        all_names = [f"class {i}" for i in range(20)]
        seen = pictures(tmp_path / "seen", *classes(base, 30, 0), *all_names)
        unseen = pictures(tmp_path / "unseen", *classes(unseen_centres, 30, 1), *names)
        return PrototypeSimilarity(unseen, unseen.listed, seen, seen.listed, **options)

    def test_of_classes_that_look_alike_are_evidence(self, tmp_path):
        new = centres(6, seed=5)
        new[2] = centres(20)[7]
        finder = self.finder(tmp_path, new, [f"new {i}" for i in range(6)], quantile=0.0)
        found = [each for i in range(6) for each in finder.evidence(Concept(name=f"new {i}"))]
        assert [(each.rule, each.seen, each.unseen) for each in found] == [("class_prototype", "class 7", "new 2")]
        assert finder.found.pairs == 1
        assert (finder.found.classes, finder.found.left_out) == (26, 0)
        assert found[0].score >= finder.found.threshold
        assert "two halves of one class have" in found[0].detail

    def test_a_class_is_as_alike_to_its_twin_as_to_itself(self, tmp_path):
        """Half of the twins are above the median of the likeness within classes, whatever the number of images."""
        finder = self.finder(tmp_path, centres(20), [f"new {i}" for i in range(20)], quantile=0.5)
        assert 5 <= finder.found.pairs <= 15

    def test_do_not_depend_on_the_order_of_images(self, tmp_path):
        values, labels = classes(centres(4), 10, 0)
        order = np.random.default_rng(0).permutation(40)
        made = []
        for name, rows in (("a", np.arange(40)), ("b", order)):
            columns = {"key": [f"{row:04d}" for row in rows], "label": [labels[row] for row in rows]}
            chunk = EncodedChunk(columns, values[rows].astype(np.float32))
            features = open_features(support.write_parts(str(tmp_path / name), SPEC, [[chunk]]))
            both = Pictures(features, concepts("a", "b", "c", "d"))
            made.append(PrototypeSimilarity(both, both.listed[:2], both, both.listed[2:]).found)
        assert made[0] == made[1]

    def test_need_two_images_of_a_class(self, seen, tmp_path):
        one = pictures(tmp_path / "one", np.ones((2, WIDTH)), [0, 1], "crane", "goose")
        with pytest.raises(RequestError, match="prototypes need classes with at least two labelled images"):
            PrototypeSimilarity(one, one.listed, seen, seen.listed)
        finder = PrototypeSimilarity(seen, concepts("cat", "goose"), seen, concepts("dog"))
        assert finder.evidence(Concept(name="goose")) == []
        assert finder.found.left_out == 1


class TestPictures:
    def test_of_more_labels_than_concepts_are_refused(self, tmp_path):
        with pytest.raises(RequestError, match="has the label 1, but there are 1 concepts"):
            pictures(tmp_path / "set", np.ones((2, WIDTH)), [0, 1], "dog")

    def test_of_texts_are_refused(self, tmp_path):
        from sharelock_ray.encoders.spec import LanguageSpec

        spec = LanguageSpec(name="texts", model="none")
        uri = support.write_parts(str(tmp_path / "t"), spec, [[support.encoded("language", ["a"])]])
        with pytest.raises(RequestError, match="is a language set: give one of images"):
            Pictures(open_features(uri), ())


class TestPretraining:
    def test_is_evidence_by_the_relations_of_wordnet(self, wordnet, wnids, tmp_path):
        (tmp_path / "classes.txt").write_text(f"{wnids['dog']}\n{wnids['machine']}\n")
        finder = Pretraining([str(tmp_path / "classes.txt")], "resnet-1", wordnet, Rules())
        (found,) = finder.evidence(Concept(name="puppy"))
        assert (found.rule, found.unseen, found.distance) == ("pretraining", "puppy", 1)
        assert found.detail.startswith(f"resnet-1 was trained on dog ({wnids['dog']}) of {tmp_path}/classes.txt: puppy")
        assert found.detail.endswith("1 step below it (hyponym)")
        assert finder.evidence(Concept(name="cat")) == []

    @pytest.mark.parametrize(
        ("model", "lists"),
        [
            ("resnet50.tv_in1k", ["timm://imagenet-1k"]),
            ("vit_base_patch16_224.augreg_in21k_ft_in1k", ["timm://imagenet-1k", "timm://imagenet-21k-goog"]),
            ("convnext_base.fb_in22k", ["timm://imagenet-22k"]),
            ("vit_base_patch16_224.mae", ["timm://imagenet-1k"]),
        ],
    )
    def test_lists_follow_from_the_name_of_a_model(self, model, lists):
        assert pretraining_of("auto", model) == lists

    def test_lists_may_be_given(self):
        assert pretraining_of("timm://imagenet-1k, mine.txt", "any") == ["timm://imagenet-1k", "mine.txt"]

    def test_a_name_that_does_not_say_is_one_line(self):
        with pytest.raises(RequestError, match="does not say on which classes it was trained"):
            pretraining_of("auto", "vit_small_patch14_dinov2.lvd142m")
