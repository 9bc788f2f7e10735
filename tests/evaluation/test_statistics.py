"""Bootstrap intervals agree with resampling by hand and with the normal approximation."""

import numpy as np
import pytest

from sharelock_ray.evaluation.statistics import estimate


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


@pytest.mark.parametrize(("items", "share"), [(1000, 0.5), (4000, 0.1), (10_000, 0.97)])
def test_interval_of_a_share_is_close_to_the_normal_approximation(items: int, share: float) -> None:
    values = np.arange(items) < round(items * share)
    found = estimate(values)
    half = 1.96 * np.sqrt(share * (1 - share) / items)
    assert found.value == pytest.approx(share)
    assert found.low == pytest.approx(share - half, abs=0.1 * half)
    assert found.high == pytest.approx(share + half, abs=0.1 * half)


def test_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = estimate(generator.random(300) < 0.3)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 199


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
    with pytest.raises(ValueError, match="at least one item"):
        estimate(np.array([]))
