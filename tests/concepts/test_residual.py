"""Residual leakage: accuracy by distance, its slope, and the excess of related classes, with intervals over classes."""

import numpy as np
import pytest

from sharelock_ray.concepts.residual import residual
from sharelock_ray.errors import RequestError


def classes(count: int, slope: float, noise: float = 0.05, seed: int = 0):
    """Classes at 1 to 5 steps, of which those at one step are related, and their accuracies."""
    generator = np.random.default_rng(seed)
    distances = [1 + i % 5 for i in range(count)]
    names = [(f"class {i}",) for i in range(count)]
    accuracy = {name: 0.6 + slope * d + generator.normal(0, noise) for (name,), d in zip(names, distances, strict=True)}
    return names, distances, [d == 1 for d in distances], accuracy


def test_accuracy_by_distance_is_the_mean_of_its_classes():
    names, distances, related, accuracy = classes(100, -0.1)
    found = residual(names, distances, related, accuracy)
    assert [(each.distance, each.classes) for each in found.by_distance] == [(d, 20) for d in range(1, 6)]
    first = found.by_distance[0].accuracy
    assert first.value == pytest.approx(np.mean([accuracy[f"class {i}"] for i in range(0, 100, 5)]))
    assert first.low < first.value < first.high


def test_the_slope_is_that_of_least_squares():
    names, distances, related, accuracy = classes(100, -0.1)
    found = residual(names, distances, related, accuracy).per_step
    assert found.value == pytest.approx(np.polyfit(distances, list(accuracy.values()), 1)[0])
    assert found.low < -0.1 < found.high
    assert found.high < 0


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        found = residual(*classes(60, -0.02, 0.1, seed))
        covered += found.per_step.low <= -0.02 <= found.per_step.high
    assert covered >= 180


def test_the_excess_is_the_difference_of_means():
    found = residual([("a",), ("b",), ("c",)], [1, 2, 3], [True, False, False], {"a": 0.9, "b": 0.5, "c": 0.3})
    assert found.excess.value == pytest.approx(0.5)


def test_what_cannot_be_estimated_is_none():
    found = residual([("a",), ("b",)], [2, 2], [False, False], {"a": 0.9, "b": 0.5})
    assert (found.per_step, found.excess) == (None, None)


def test_classes_without_an_accuracy_or_a_distance_are_counted():
    names, distances, related, accuracy = classes(10, -0.1)
    del accuracy["class 0"]
    found = residual(names, [None if d == 5 else d for d in distances], related, accuracy)
    assert (found.classes, found.left_out) == (7, 3)


def test_names_that_do_not_match_are_one_line():
    names, distances, related, _ = classes(10, 0)
    with pytest.raises(RequestError, match="0 of 10 unseen classes have an accuracy and a distance") as error:
        residual(names, distances, related, {"another": 0.5})
    assert "\n" not in str(error.value)
