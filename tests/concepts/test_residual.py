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
    for seed in range(60):
        found = residual(*classes(60, -0.02, 0.1, seed))
        covered += found.per_step.low <= -0.02 <= found.per_step.high
    assert covered >= 54


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


class TestTheFit:
    @staticmethod
    def drawn(count: int, slope: float, seed: int, images: int = 40):
        """Classes at 1 to 9 steps whose images are answered right with the log odds 1 + slope (steps - 5)."""
        generator = np.random.default_rng(seed)
        distances = generator.integers(1, 10, count)
        odds = 1 + slope * (distances - 5)
        right = generator.binomial(images, 1 / (1 + np.exp(-odds))) / images
        names = [(f"class {i}",) for i in range(count)]
        return names, distances.tolist(), {of[0]: value for of, value in zip(names, right.tolist(), strict=True)}

    def fit(self, count: int, slope: float, seed: int = 0, **options):
        names, distances, accuracy = self.drawn(count, slope, seed)
        images = dict.fromkeys(accuracy, 40)
        return residual(names, distances, [False] * count, accuracy, images=images, **options)

    def test_equals_an_independent_maximum_of_the_likelihood(self):
        from scipy.optimize import minimize

        names, distances, accuracy = self.drawn(50, -0.3, 1)
        sizes = np.random.default_rng(2).integers(5, 100, 50)
        x, y = np.array(distances), np.array(list(accuracy.values()))

        def loss(b: np.ndarray) -> float:
            odds = b[0] + b[1] * x
            return float((sizes * (np.logaddexp(0, odds) - y * odds)).sum())

        constant, slope = minimize(loss, [0, 0], method="BFGS", options={"gtol": 1e-8}).x
        images = dict(zip(accuracy, sizes.tolist(), strict=True))
        found = residual(names, distances, [False] * 50, accuracy, images=images)
        assert found.log_odds.value == pytest.approx(slope, abs=1e-4)
        assert found.at_far.value == pytest.approx(1 / (1 + np.exp(-constant - slope * found.far)), abs=1e-4)
        assert found.mean.value == pytest.approx((sizes @ y) / sizes.sum())
        assert found.images == sizes.sum()

    def test_finds_a_planted_slope_and_says_what_nearness_explains(self):
        found = self.fit(120, -0.3, chance=0.1)
        assert found.log_odds.low < -0.3 < found.log_odds.high < 0
        assert found.far in (8, 9)
        truth = 1 / (1 + np.exp(-1 + 0.3 * (found.far - 5)))
        assert found.at_far.low < truth < found.at_far.high
        share = (found.mean.value - found.at_far.value) / (found.mean.value - 0.1)
        assert found.explained.value == pytest.approx(share)
        assert found.explained.low > 0
        assert "Nearer classes do better: nearness explains" in found.statement
        assert "does not prove it" in found.statement

    def test_finds_none_where_none_is(self):
        found = self.fit(120, 0.0)
        assert found.log_odds.low < 0 < found.log_odds.high
        assert found.explained.low < 0 < found.explained.high
        assert "It is not shown that accuracy depends on distance" in found.statement

    def test_says_that_nearer_classes_do_worse(self):
        assert "Nearer classes do worse" in self.fit(120, 0.3).statement

    @pytest.mark.parametrize("slope", [-0.3, 0.0])
    def test_covers_the_truth_as_often_as_it_says(self, slope):
        covered = sum(
            found.log_odds.low <= slope <= found.log_odds.high
            for found in (self.fit(60, slope, seed) for seed in range(40))
        )
        assert covered >= 34

    def test_of_similarities_shows_groups_of_equally_many_classes(self):
        generator = np.random.default_rng(0)
        distances = generator.uniform(0, 1, 200)
        accuracy = {f"class {i}": float(at < 0.5) for i, at in enumerate(distances)}
        names = [(name,) for name in accuracy]
        found = residual(names, distances.tolist(), [False] * 200, accuracy, distance="names")
        assert [each.classes for each in found.by_distance] == [40] * 5
        assert [each.accuracy.value for each in found.by_distance][::4] == [1, 0]
        # Distance separates right from wrong answers.
        assert np.isfinite(found.log_odds.low)
        assert "by names" in found.statement

    def test_without_accuracy_above_chance_explains_nothing(self):
        accuracy = {"a": 0.1, "b": 0.2, "c": 0.1}
        names = [(name,) for name in accuracy]
        assert residual(names, [1, 2, 3], [False] * 3, accuracy, chance=0.5).explained is None
