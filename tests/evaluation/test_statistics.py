"""Intervals agree with SciPy's, with resampling by hand and with the normal approximation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from sharelock_ray.evaluation.statistics import estimate, proportion


@pytest.mark.parametrize(("hits", "items"), [(0, 7), (7, 7), (1, 1), (0, 1), (3, 40), (319, 320), (9_990, 10_000)])
def test_interval_of_a_share_is_wilsons(hits: int, items: int) -> None:
    found = proportion(np.arange(items) < hits)
    exact = binomtest(hits, items).proportion_ci(method="wilson")
    assert found.value == hits / items
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_covers_a_high_share_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    found = [proportion(generator.random(60) < 0.97) for _ in range(500)]
    assert 465 <= sum(each.low <= 0.97 <= each.high for each in found) <= 497


def captions(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits of 1 to 5 captions of each image, mixed: those of one image are mostly alike. And their images."""
    generator = np.random.default_rng(seed)
    of_image = generator.beta(0.5, 0.5, images)
    groups = generator.permutation(np.repeat(np.arange(images), generator.integers(1, 6, images)))
    return generator.random(len(groups)) < of_image[groups], groups


def test_interval_over_groups_equals_resampling_them_by_hand() -> None:
    hits, groups = captions(400, seed=0)
    found = proportion(hits, groups)
    generator, of_group = np.random.default_rng(1), [hits[groups == g] for g in range(400)]
    means = [np.concatenate([of_group[g] for g in generator.integers(0, 400, 400)]).mean() for _ in range(1500)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.value == pytest.approx(hits.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.07 * (high - low))
    # As if captions were independent, it would be narrower by a third.
    alone = proportion(hits)
    assert alone.high - alone.low < 0.75 * (found.high - found.low)


def test_covers_the_share_of_groups_about_nineteen_times_in_twenty() -> None:
    found = [proportion(*captions(80, seed)) for seed in range(400)]
    assert 368 <= sum(each.low <= 0.5 <= each.high for each in found) <= 394


def test_groups_of_one_item_are_items() -> None:
    hits = np.random.default_rng(0).random(50) < 0.3
    assert proportion(hits, np.random.default_rng(1).permutation(50)).model_dump() == pytest.approx(
        proportion(hits).model_dump()
    )


@pytest.mark.parametrize("hits", [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]])
def test_groups_that_do_not_differ_are_worth_an_item_each(hits: list[int]) -> None:
    alone = binomtest(sum(hits) // 2, 2).proportion_ci(method="wilson")
    found = proportion(np.array(hits, bool), np.array([0, 0, 1, 1]))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_groups_never_tell_more_than_their_items() -> None:
    # The first group's hits make up for the second's misses, as chance never does for long.
    hits, groups = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0], bool), np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert proportion(hits, groups).low >= proportion(hits).low


def by_hand(values: np.ndarray, resamples: int = 20_000) -> tuple[float, float]:
    """Percentiles of the means of index resamples."""
    generator = np.random.default_rng(99)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("kind", ["hits", "ranks", "numbers"])
def test_interval_equals_resampling_by_hand(kind: str) -> None:
    generator = np.random.default_rng(0)
    values = {
        "hits": generator.random(150) < 0.2,
        "ranks": generator.integers(0, 6, 150),
        "numbers": generator.exponential(size=150),
    }[kind]
    found, (low, high) = estimate(values), by_hand(values)
    assert found.value == pytest.approx(values.mean())
    width = high - low
    assert found.low == pytest.approx(low, abs=0.07 * width)
    assert found.high == pytest.approx(high, abs=0.07 * width)


def test_does_not_depend_on_the_order_of_items_nor_on_the_call() -> None:
    values = np.random.default_rng(0).random(100) < 0.4
    assert estimate(values) == estimate(values) == estimate(values[::-1])
    numbers = np.random.default_rng(0).random(100)
    assert estimate(numbers, seed=1) != estimate(numbers)


@pytest.mark.parametrize("value", [0, 1])
def test_equal_items_have_no_width(value: int) -> None:
    found = estimate(np.full(10, value))
    assert (found.value, found.low, found.high) == (value, value, value)


def test_one_item_is_itself() -> None:
    assert estimate(np.array([0.25])).model_dump() == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_no_items_are_refused() -> None:
    for refused in (estimate, proportion):
        with pytest.raises(ValueError, match="at least one item"):
            refused(np.array([]))
