"""Votes of neighbours are those of plain loops, in blocks of any size."""

import math

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation import ranks as ranks_module
from sharelock_ray.evaluation.tasks.neighbours import neighbour_ranks, neighbours

NAMES = [f"class {c}" for c in range(6)]


def data(images: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Features of any length near the centres of their classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(6, 8))
    labels = generator.integers(0, 6, images)
    features = (centres[labels] + 1.5 * generator.normal(size=(images, 8))) * generator.uniform(0.1, 9, (images, 1))
    return torch.from_numpy(features).float(), labels


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def votes(training: torch.Tensor, known: np.ndarray, image: list[float], k: int) -> list[float]:
    """Votes for each class by plain loops."""
    near = sorted(((cosine(image, other), c) for other, c in zip(training.tolist(), known, strict=True)), reverse=True)
    of_class = [0.0] * 6
    for similarity, c in near[:k]:
        of_class[c] += math.exp(similarity / 0.07)
    return of_class


@pytest.mark.parametrize("k", [1, 20])
def test_predictions_are_those_of_plain_loops(k: int) -> None:
    (training, known), (features, labels) = data(150, 0), data(80, 1)
    found, samples = neighbours(training, known, features, labels, NAMES, k)
    expected = [votes(training, known, image, k) for image in features.tolist()]
    hits = [of_class.index(max(of_class)) == label for of_class, label in zip(expected, labels, strict=True)]
    assert found.top_1.value == np.mean(hits)
    five = [sum(v >= own[c] for v in own) <= 5 and own[c] > 0 for own, c in zip(expected, labels, strict=True)]
    assert found.top_5.value == np.mean(five)
    assert (found.images, found.training_images, found.neighbours, found.candidates) == (80, 150, k, 6)
    assert 1 / 6 < found.top_1.value < 1
    assert samples.predicted.tolist() == [of_class.index(max(of_class)) for of_class in expected]
    assert np.mean(samples.ahead == 0) == found.top_1.value


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (training, known), (features, labels) = data(150, 0), data(80, 1)
    whole, samples = neighbours(training, known, features, labels, NAMES)
    # Also smaller than the number of neighbours.
    monkeypatch.setattr(ranks_module, "_BLOCK", 7)
    found, again = neighbours(training, known, features, labels, NAMES)
    assert found == whole
    assert again.predicted.tolist() == samples.predicted.tolist()


def test_fewer_training_images_than_neighbours_all_vote() -> None:
    training = torch.eye(3)
    found, _ = neighbours(training, np.array([0, 1, 1]), training[:1], np.array([0]), NAMES[:2])
    # The nearest image outweighs two others.
    assert (found.top_1.value, found.neighbours) == (1, 3)


def test_a_class_without_votes_ranks_last_and_is_not_tied() -> None:
    training = torch.eye(3)
    found = neighbour_ranks(training, np.zeros(3, np.int64), training, np.array([0, 1, 2]), 6, ties="first_index")
    assert (found.ahead.tolist(), found.tied.tolist()) == ([0, 6, 6], [False] * 3)


def test_equal_votes_are_a_tie() -> None:
    training = torch.eye(2)
    image, known = torch.ones(2, 2), np.array([0, 1])
    strict, _ = neighbours(training, known, image, known, NAMES[:2])
    first, _ = neighbours(training, known, image, known, NAMES[:2], ties="first_index")
    assert (strict.top_1.value, strict.tied) == (0, 2)
    assert (first.top_1.value, first.tied) == (0.5, 2)


def test_half_precision_is_read() -> None:
    (training, known), (features, labels) = data(150, 0), data(80, 1)
    half, _ = neighbours(training.half(), known, features.half(), labels, NAMES)
    whole, _ = neighbours(training, known, features, labels, NAMES)
    assert half.top_1.value == pytest.approx(whole.top_1.value, abs=0.03)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        neighbours(torch.eye(2), np.arange(2), torch.empty(0, 2), np.empty(0, np.int64), NAMES[:2])
