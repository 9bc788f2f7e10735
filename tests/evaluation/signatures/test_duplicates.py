"""Test images that training also has are found by their features, in blocks, without an image being read."""

from pathlib import Path

import numpy as np
import pytest
import torch

import support
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.evaluation import ranks as module
from sharelock_ray.evaluation.signatures import duplicates
from sharelock_ray.evaluation.signatures.duplicates import nearest_by_cosine, training_duplicates
from sharelock_ray.features.featureset import FeatureSet, open_features

SPEC = VisionSpec(name="signal", model="none", stored_dtype="float16")
WIDTH = 32


def features(folder: Path, values: np.ndarray) -> FeatureSet:
    keys = [f"00000/{folder.name}{i:04d}" for i in range(len(values))]
    chunk = support.encoded("vision", keys, embeddings=values.astype(np.float32).reshape(-1, WIDTH))
    return open_features(support.write_parts(str(folder), SPEC, [[chunk]]))


def randoms(rows: int, seed: int) -> np.ndarray:
    """Features with a large mean, as those of many encoders: uncentred, all are alike."""
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)) + 20


@pytest.fixture
def training(tmp_path: Path) -> FeatureSet:
    return features(tmp_path / "training", randoms(90, 0))


class TestDuplicates:
    def test_are_found_with_their_pair(self, training: FeatureSet, tmp_path: Path) -> None:
        values = randoms(50, 1)
        values[[3, 40]] = randoms(90, 0)[[70, 5]]
        # Compressed again, the features differ a little.
        values[40] += 0.05 * np.random.default_rng(2).normal(size=WIDTH)
        found = training_duplicates(features(tmp_path / "test", values), training, threshold=0.95)
        assert found.present
        assert (found.found, found.compared, found.of) == (2, (50, 90), (50, 90))
        assert [(pair.test, pair.training) for pair in found.pairs] == [
            ("00000/test0003", "00000/training0070"),
            ("00000/test0040", "00000/training0005"),
        ]
        assert found.pairs[0].cosine == pytest.approx(1, abs=1e-5)
        assert 0.97 < found.pairs[1].cosine < 1
        assert found.statement == (
            "2 (4.0 %) of 50 test images are near duplicates of one of 90 training images: "
            "the cosine of their centred features is at least 0.950."
        )

    def test_other_images_are_none_although_all_features_are_alike(self, training: FeatureSet, tmp_path: Path) -> None:
        test = features(tmp_path / "test", randoms(50, 1))
        uncentred = nearest_by_cosine(
            test.embeddings, training.embeddings, torch.arange(50), torch.arange(90), torch.zeros(WIDTH)
        )
        assert uncentred[0].min() > 0.99
        found = training_duplicates(test, training)
        assert (found.present, found.found, found.pairs) == (False, 0, ())
        assert found.statement.startswith("None of 50 test images is a near duplicate of one of 90 training images")

    def test_the_nearest_are_shown(self, tmp_path: Path) -> None:
        same = features(tmp_path / "both", randoms(40, 0))
        found = training_duplicates(same, same)
        assert (found.found, len(found.pairs)) == (40, 8)
        assert all(pair.test == pair.training for pair in found.pairs)

    def test_what_is_near_follows_the_usual_distance_to_training_images(self, tmp_path: Path) -> None:
        # Three directions with little noise, as of an encoder that sees only colours.
        generator = np.random.default_rng(0)
        axes = np.eye(WIDTH)[generator.integers(0, 3, 140)] + 0.02 * generator.normal(size=(140, WIDTH))
        training, test = features(tmp_path / "training", axes[:90]), features(tmp_path / "test", axes[80:])
        found = training_duplicates(test, training)
        assert found.found == 10
        assert found.threshold > 0.99
        assert training_duplicates(test, training, threshold=0.97).found == 60

    def test_a_test_set_of_which_most_is_training_is_found(self, tmp_path: Path) -> None:
        values = randoms(100, 0)
        found = training_duplicates(features(tmp_path / "test", values[50:]), features(tmp_path / "all", values[:85]))
        assert found.found == 35

    def test_limited_work_compares_a_part_and_says_so(
        self, training: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(duplicates, "_FEWEST", 10)
        test = features(tmp_path / "test", randoms(50, 1))
        assert training_duplicates(test, training, work=20 * 90 * WIDTH).compared == (20, 90)
        found = training_duplicates(test, training, work=10 * 30 * WIDTH)
        assert (found.compared, found.of) == ((10, 30), (50, 90))
        assert "none of 10 of 50 test images is a near duplicate of one of 30 of 90 training" in found.statement.lower()
        assert training_duplicates(test, training, work=None).compared == (50, 90)

    def test_empty_sets_have_none(self, training: FeatureSet, tmp_path: Path) -> None:
        empty = features(tmp_path / "empty", np.empty((0, WIDTH)))
        assert training_duplicates(empty, training) is None
        assert training_duplicates(training, empty) is None


@pytest.mark.parametrize("block", [7, 2048])
def test_the_nearest_equals_all_cosines(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    some, others = (torch.from_numpy(randoms(rows, rows)).half() for rows in (30, 45))
    rows, other_rows = torch.arange(0, 30, 2), torch.arange(1, 45, 3)
    mean = others.float().mean(0)
    cosine, place = nearest_by_cosine(some, others, rows, other_rows, mean)
    a, b = some[rows].double().numpy() - mean.numpy(), others[other_rows].double().numpy() - mean.numpy()
    expected = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine, expected.max(1), atol=1e-5)
    assert place.tolist() == expected.argmax(1).tolist()
