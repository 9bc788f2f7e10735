"""Which images and texts are trained on: by key or by label, of some classes, and without removed captions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet, Pairs, open_features
from sharelock_ray.features.pairing import Pairing, Removed
from sharelock_ray.sources.sample import Reject

VISION, LANGUAGE = VisionSpec(name="made-up", model="none"), LanguageSpec(name="made-up", model="none")
KEYS = [f"a/{i}" for i in range(8)]
LABELS = [2, 0, 1, None, 2, 0, 1, 2]
TEXTS = [["zero"], ["one", "one more"], ["two", "two more", "two again"]]


def images(folder: Path, labels: list[int | None] = LABELS) -> FeatureSet:
    chunk = support.encoded("vision", KEYS)
    chunk.columns["label"] = labels
    return open_features(support.write_parts(str(folder / "vision"), VISION, [[chunk]]))


def captions(folder: Path, **changes: object) -> FeatureSet:
    """Two captions of each image but the last."""
    keys = [key for key in KEYS[:-1] for _ in range(2)]
    chunk = support.encoded("language", keys, **changes)
    return open_features(support.write_parts(str(folder / "language"), LANGUAGE, [[chunk]]))


def class_texts(folder: Path) -> FeatureSet:
    """The texts of three classes, in two parts."""
    parts = []
    for labels in ([0, 1], [2]):
        keys = [f"classes-0000{labels[0]}/{label:09d}" for label in labels for _ in TEXTS[label]]
        chunk = support.encoded("language", keys)
        chunk.columns["text"] = [text for label in labels for text in TEXTS[label]]
        parts.append([chunk])
    return open_features(support.write_parts(str(folder / "texts"), LANGUAGE, parts, split="prompts-1a2b3c4d"))


def texts_of(pairs: Pairs) -> dict[str, list[str]]:
    """The texts of each image, by key."""
    text = pairs.language.columns["text"]
    rows = np.split(pairs.caption_rows, pairs.caption_start[1:-1])
    return {key: list(text[some]) for key, some in zip(pairs.keys, rows, strict=True)}


def removed(folder: Path, **columns: list[object]) -> Removed:
    pq.write_table(pa.table(columns), folder / "removed.parquet")
    return Removed.of(str(folder / "removed.parquet"))


def test_the_default_is_all_pairs_of_a_key(tmp_path: Path) -> None:
    pairs = Pairing().pairs(images(tmp_path), captions(tmp_path))
    assert list(pairs.keys) == KEYS[:-1]
    assert Pairing().identity == {}
    assert pairs.lost == {"vision": 1, "language": 0}


def test_images_are_paired_with_all_texts_of_their_class(tmp_path: Path) -> None:
    pairs = Pairing(by="label").pairs(images(tmp_path), class_texts(tmp_path))
    expected = {key: TEXTS[label] for key, label in zip(KEYS, LABELS, strict=True) if label is not None}
    assert texts_of(pairs) == expected
    assert pairs.lost == {"vision": 1, "language": 0}


def test_a_class_without_images_is_lost(tmp_path: Path) -> None:
    pairs = Pairing(by="label").pairs(images(tmp_path, [2, 2, 1, None, 2, 1, 1, 2]), class_texts(tmp_path))
    assert pairs.lost == {"vision": 1, "language": 1}


@pytest.mark.parametrize("by", ["key", "label"])
def test_only_images_of_the_classes_are_kept(tmp_path: Path, by: str) -> None:
    texts = class_texts(tmp_path) if by == "label" else captions(tmp_path)
    pairs = Pairing(by=by, classes=(0, 1), class_count=3, concepts="1a2b3c4d").pairs(images(tmp_path), texts)
    assert list(pairs.keys) == ["a/1", "a/2", "a/5", "a/6"]


def test_what_differs_is_in_the_identity(tmp_path: Path) -> None:
    one = Pairing(by="label", classes=(0, 1), concepts="1a2b3c4d")
    assert one.identity.keys() == {"by", "classes", "concepts"}
    assert one.identity["concepts"] == "1a2b3c4d"
    others = [
        Pairing(by="label", classes=(0, 2), concepts="1a2b3c4d"),
        Pairing(by="label", classes=(0, 1), concepts="5e6f7a8b"),
        Pairing(classes=(0, 1), concepts="1a2b3c4d"),
        one.model_copy(update={"removed": removed(tmp_path, key=["a/1"])}),
    ]
    assert len({tuple(sorted(each.identity.items())) for each in (one, *others)}) == 5


class TestRemoved:
    def test_images_are_left_out_with_all_their_captions(self, tmp_path: Path) -> None:
        pairing = Pairing(removed=removed(tmp_path, key=["a/0", "a/3"]))
        assert list(pairing.pairs(images(tmp_path), captions(tmp_path)).keys) == ["a/1", "a/2", "a/4", "a/5", "a/6"]

    def test_captions_are_left_out_alone(self, tmp_path: Path) -> None:
        rows = {"key": ["a/0", "a/1", "a/1", "a/2"], "caption_id": [0, 0, 1, None]}
        found = texts_of(Pairing(removed=removed(tmp_path, **rows)).pairs(images(tmp_path), captions(tmp_path)))
        assert found["a/0"] == ["text 1 of a/0"]
        # No caption is left of the second, and the third is left out as a whole.
        assert list(found) == ["a/0", "a/3", "a/4", "a/5", "a/6"]
        assert all(len(found[key]) == 2 for key in ("a/3", "a/4", "a/5", "a/6"))

    def test_they_are_enough_for_images_without_labels(self, tmp_path: Path) -> None:
        vision = images(tmp_path, [None] * 8)
        pairing = Pairing(classes=(0,), class_count=3, removed=removed(tmp_path, key=["a/0"]), concepts="1a2b3c4d")
        assert len(pairing.pairs(vision, captions(tmp_path))) == 6

    def test_an_input_that_could_not_be_encoded_may_be_named(self, tmp_path: Path) -> None:
        lost = [Reject("a/9", "encode", "UnknownToken", "no token")]
        pairing = Pairing(removed=removed(tmp_path, key=["a/0", "a/9"]))
        assert len(pairing.pairs(images(tmp_path), captions(tmp_path, rejects=lost))) == 6

    def test_keys_of_other_data_are_refused(self, tmp_path: Path) -> None:
        pairing = Pairing(removed=removed(tmp_path, key=["a/0", "b/0", "b/1", "b/2", "b/3"]))
        with pytest.raises(
            RequestError, match=r"^4 keys of .*removed.parquet are not in .* \(b/0, b/1, b/2, …\): take"
        ):
            pairing.pairs(images(tmp_path), captions(tmp_path))

    def test_a_table_that_changes_is_refused(self, tmp_path: Path) -> None:
        pairing = Pairing(removed=removed(tmp_path, key=["a/0"]))
        removed(tmp_path, key=["a/1"])
        with pytest.raises(RequestError, match="was changed after the run had read it"):
            pairing.pairs(images(tmp_path), captions(tmp_path))

    def test_another_file_is_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "text.parquet").write_text("text")
        not_a_table = Removed.of(str(tmp_path / "text.parquet"))
        for found in (removed(tmp_path, name=["a/0"]), not_a_table):
            with pytest.raises(RequestError, match="is no Parquet table with the column `key`") as error:
                Pairing(removed=found).pairs(images(tmp_path), captions(tmp_path))
            assert "\n" not in str(error.value)
        with pytest.raises(RequestError, match="no table of removed captions"):
            Removed.of(str(tmp_path / "missing.parquet"))


class TestRefusals:
    def test_images_without_labels(self, tmp_path: Path) -> None:
        vision = images(tmp_path, [None] * 8)
        with pytest.raises(RequestError, match="has no labels, which texts of classes belong to"):
            Pairing(by="label").pairs(vision, class_texts(tmp_path))
        with pytest.raises(RequestError, match="has no labels, by which a split of concepts selects images"):
            Pairing(classes=(0,), class_count=3).pairs(vision, captions(tmp_path))

    def test_labels_without_texts(self, tmp_path: Path) -> None:
        vision = images(tmp_path, [0, 1, 2, 3, 0, 1, 2, 3])
        with pytest.raises(RequestError, match=r"go from 0 to 3, but .* has the texts of 3 classes"):
            Pairing(by="label").pairs(vision, class_texts(tmp_path))

    def test_labels_of_another_list_of_classes(self, tmp_path: Path) -> None:
        pairing = Pairing(classes=(0,), class_count=2, concepts="1a2b3c4d")
        with pytest.raises(RequestError, match="has the label 2, but the split of concepts 1a2b3c4d is of 2 classes"):
            pairing.pairs(images(tmp_path), captions(tmp_path))

    def test_a_split_that_leaves_nothing(self, tmp_path: Path) -> None:
        pairing = Pairing(classes=(4,), class_count=5, concepts="1a2b3c4d")
        with pytest.raises(RequestError, match="1a2b3c4d leaves none of the 7 pairs"):
            pairing.pairs(images(tmp_path), captions(tmp_path))
