"""Intervals and tests agree with SciPy's, with resampling by hand and with the normal approximation."""

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from sharelock_ray.evaluation import statistics as module
from sharelock_ray.evaluation.statistics import class_mean, compare, estimate, holm, proportion


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
    with pytest.raises(ValueError, match="at least one item"):
        class_mean(np.empty(0, bool), np.empty(0, np.int64))


def test_groups_are_resampled_with_all_their_items() -> None:
    hits, groups = captions(300, seed=0)
    values = hits + np.random.default_rng(2).random(len(hits))
    found = estimate(values, groups=groups)
    generator, of_group = np.random.default_rng(1), [values[groups == g] for g in range(300)]
    means = [np.concatenate([of_group[g] for g in generator.integers(0, 300, 300)]).mean() for _ in range(1500)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.07 * (high - low))
    # The bootstrap over images and the interval of a proportion tell the same.
    share, wilson = estimate(hits, groups=groups), proportion(hits, groups)
    assert (share.low, share.high) == pytest.approx((wilson.low, wilson.high), abs=0.1 * (wilson.high - wilson.low))


def test_groups_may_be_left_out() -> None:
    # Groups of one item in another order, of which some numbers are not used.
    values = np.random.default_rng(0).random(60)
    assert estimate(values, groups=2 * np.random.default_rng(1).permutation(60)).model_dump() == pytest.approx(
        estimate(values).model_dump()
    )


def test_fewer_draws_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(60)
    whole = estimate(values)
    monkeypatch.setattr(module, "_DRAWN", 7 * 60)
    assert estimate(values) == whole


class TestMeanOverClasses:
    def test_interval_is_that_of_resampling_each_class_by_hand(self) -> None:
        generator = np.random.default_rng(0)
        classes = generator.permutation(np.repeat(np.arange(8), [5, 10, 20, 40, 5, 10, 20, 40]))
        hits = generator.random(150) < np.linspace(0.2, 0.9, 8)[classes]
        found = class_mean(hits, classes)
        of_class = [hits[classes == c] for c in range(8)]
        assert found.value == pytest.approx(np.mean([each.mean() for each in of_class]))
        means = [np.mean([generator.choice(each, len(each)).mean() for each in of_class]) for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.07 * (high - low))

    def test_classes_without_items_are_left_out(self) -> None:
        assert class_mean(np.array([True, False]), np.array([1, 5])).value == 0.5


def paired(items: int, seed: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Hits of two models that are mostly right on the same items."""
    generator = np.random.default_rng(seed)
    easy = generator.random(items)
    return tuple(generator.random(items) < 0.8 * easy + more for more in (0.1, 0.1 + gain))


class TestComparison:
    @pytest.mark.parametrize("gain", [0.0, 0.05, 0.1])
    def test_p_values_are_those_of_exact_tests(self, gain: float) -> None:
        first, second = paired(400, seed=0, gain=gain)
        found = compare(first, second)
        only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
        assert (found.items, found.first_only, found.second_only) == (400, only_first, only_second)
        # McNemar's test is a two-sided sign test. The binomial tail is added by hand.
        tail = stats.binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)
        assert found.p == found.p_mcnemar == pytest.approx(min(1, 2 * tail))
        assert found.p_bootstrap == pytest.approx(found.p_mcnemar, abs=0.06)

    def test_interval_is_that_of_resampling_pairs_by_hand(self) -> None:
        first, second = paired(400, seed=0, gain=0.05)
        found = compare(first, second).difference
        low, high = by_hand(second.astype(float) - first)
        assert found.value == pytest.approx(second.mean() - first.mean())
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.07 * (high - low))

    def test_p_value_of_numbers_is_that_of_the_paired_t_test(self) -> None:
        generator = np.random.default_rng(0)
        first = generator.normal(size=300)
        second = first + generator.normal(0.1, 0.9, 300)
        found = compare(first, second)
        assert found.p_mcnemar is None
        assert found.p == found.p_bootstrap == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)

    def test_models_alike_differ_by_chance_one_time_in_twenty(self) -> None:
        found = [compare(*paired(150, seed)) for seed in range(300)]
        assert 4 <= sum(each.p_bootstrap < 0.05 for each in found) <= 27
        # The exact test never rejects more often.
        assert sum(each.p_mcnemar < 0.05 for each in found) <= 20

    def test_captions_of_one_image_are_not_independent(self) -> None:
        first, groups = captions(100, seed=0)
        second, _ = captions(100, seed=0)
        second = second | (groups % 5 == 0)
        alone, grouped = compare(first, second), compare(first, second, groups)
        assert alone.difference.value == grouped.difference.value
        assert grouped.p_mcnemar is None
        assert grouped.p_bootstrap >= alone.p_bootstrap
        assert grouped.difference.high - grouped.difference.low > alone.difference.high - alone.difference.low

    def test_equal_models_have_no_difference(self) -> None:
        hits = np.array([True, False, True])
        found = compare(hits, hits)
        assert (found.difference.low, found.difference.high, found.p_mcnemar, found.p_bootstrap) == (0, 0, 1, 1)

    def test_order_of_the_models_is_the_sign(self) -> None:
        first, second = paired(100, seed=0, gain=0.1)
        one, other = compare(first, second), compare(second, first)
        assert one.difference.value == -other.difference.value
        assert one.p_mcnemar == other.p_mcnemar

    @pytest.mark.parametrize("second", [np.ones(2, bool), np.empty(0, bool)])
    def test_other_items_are_refused(self, second: np.ndarray) -> None:
        with pytest.raises(ValueError, match="the same items of both models"):
            compare(np.empty(0, bool) if not len(second) else np.ones(3, bool), second)


class TestHolm:
    def test_is_the_largest_of_the_steps_up_to_each_p(self) -> None:
        p = np.random.default_rng(0).random(30) ** 3
        expected = [min(1, max(q * (30 - (p < q).sum()) for q in p if q <= each)) for each in p]
        assert holm(p.tolist()) == pytest.approx(expected)

    def test_rejects_what_its_steps_reject(self) -> None:
        # They compare the smallest with 0.05 / 3, the next with 0.05 / 2, and the last with 0.05, until one fails.
        assert [p < 0.05 for p in holm([0.02, 0.01, 0.04])] == [True, True, True]
        assert [p < 0.05 for p in holm([0.026, 0.01, 0.04])] == [False, True, False]

    def test_equal_p_stay_equal(self) -> None:
        assert holm([0.01, 0.2, 0.01]) == pytest.approx([0.03, 0.2, 0.03])

    def test_of_one_and_of_none(self) -> None:
        assert holm([0.3]) == [0.3]
        assert holm([]) == []
