"""Correlations over few models, against scipy, naive formulas, published figures and simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sharelock_ray.study import correlation
from sharelock_ray.study.correlation import (
    Kind,
    coefficient,
    compare_correlations,
    critical_correlation,
    detectable_correlation,
    fisher_interval,
    fit_line,
    measurement,
    partial_correlation,
    power,
    within_families,
    without_each,
)

SCIPY = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
}
each_kind = pytest.mark.parametrize("kind", SCIPY)
FAMILIES = [f"family {i // 2}" for i in range(12)]


def scores(models: int = 12, r: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two scores of a population with correlation r, rounded so that some are tied."""
    x, rest = np.random.default_rng(seed).standard_normal((2, models))
    return x.round(1), (r * x + math.sqrt(1 - r**2) * rest).round(1)


def constant_is_0(of, x: np.ndarray, y: np.ndarray) -> float:
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(of(x, y))


class TestCoefficients:
    @each_kind
    def test_are_those_of_scipy(self, kind: Kind) -> None:
        x, y = scores()
        assert coefficient(kind, x, y, FAMILIES).value == pytest.approx(SCIPY[kind](x, y))

    @each_kind
    def test_resample_models_as_scipy_does(self, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(correlation, "_RESAMPLES", 500)
        x, y = scores()
        found = coefficient(kind, x, y, FAMILIES).by_models
        expected = stats.bootstrap(
            (x, y),
            lambda x, y: constant_is_0(SCIPY[kind], x, y),
            paired=True,
            vectorized=False,
            n_resamples=500,
            batch=correlation._AT_ONCE,
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert found == pytest.approx(tuple(expected))

    @each_kind
    def test_resample_families_with_all_their_models(self, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(correlation, "_RESAMPLES", 500)
        x, y = scores()
        found = coefficient(kind, x, y, FAMILIES).by_families

        def of_families(drawn: np.ndarray) -> float:
            models = np.concatenate([[2 * each, 2 * each + 1] for each in drawn])
            return constant_is_0(SCIPY[kind], x[models], y[models])

        expected = stats.bootstrap(
            (np.arange(6),),
            of_families,
            vectorized=False,
            n_resamples=500,
            batch=correlation._AT_ONCE,
            rng=np.random.default_rng(0),
        ).confidence_interval
        # In another order, a sum of all families is equal only up to rounding, and its rank another.
        assert found == pytest.approx(tuple(expected), abs=1e-3)

    def test_models_that_are_copies_have_an_interval_by_families_as_if_alone(self) -> None:
        x, y = scores(8)
        once = coefficient("pearson", x, y, [str(i) for i in range(8)])
        twice = coefficient("pearson", np.tile(x, 2), np.tile(y, 2), [str(i % 8) for i in range(16)])
        assert twice.by_families == pytest.approx(once.by_models)
        assert np.diff(twice.by_models) < np.diff(once.by_models)

    def test_of_fewer_than_five_units_have_no_interval(self) -> None:
        x, y = scores(6)
        found = coefficient("pearson", x, y, list("aabbcc"))
        assert found.by_models is not None
        assert found.by_families is None
        assert coefficient("pearson", x[:4], y[:4], list("abcd")).by_models is None

    def test_of_a_perfect_line_have_no_interval(self) -> None:
        x = np.arange(8.0)
        found = coefficient("pearson", x, 2 * x + 1, [str(i) for i in range(8)])
        assert (found.value, found.by_models) == (pytest.approx(1), None)

    def test_intervals_cover_the_truth_about_as_often_as_they_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(correlation, "_RESAMPLES", 500)
        monkeypatch.setattr(correlation, "_PERMUTATIONS", 2)
        generator = np.random.default_rng(0)
        inside = []
        for _ in range(300):
            x, y = generator.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 20).T
            low, high = coefficient("pearson", x, y, [str(i) for i in range(20)]).by_models
            inside.append(low <= 0.7 <= high)
        # BCa of 20 models covers somewhat less than 95 %.
        assert 0.88 < np.mean(inside) < 0.98


class TestPermutations:
    @pytest.mark.parametrize("kind", ["pearson", "spearman"])
    def test_count_every_pairing_of_few_models(self, kind: Kind) -> None:
        x, y = scores(6)
        found = coefficient(kind, x, y, list("abcdef"))
        observed = SCIPY[kind](x, y)
        every = np.array([SCIPY[kind](x, y[list(order)]) for order in itertools.permutations(range(6))])
        tails = np.mean(every >= observed - 1e-12), np.mean(every <= observed + 1e-12)
        assert found.exact
        assert found.p == pytest.approx(min(1.0, 2 * min(tails)))

    def test_of_more_models_are_random(self) -> None:
        x, y = scores(12, 0.5)
        found = coefficient("pearson", x, y, FAMILIES)
        assert not found.exact
        assert found.p == pytest.approx(stats.pearsonr(x, y).pvalue, rel=0.3)

    def test_of_kendall_are_those_of_scipy(self) -> None:
        x, y = np.random.default_rng(0).standard_normal((2, 9))
        found = coefficient("kendall", x, y, list("abcdefghi"))
        assert found.p == stats.kendalltau(x, y, method="exact").pvalue
        assert found.exact
        assert not coefficient("kendall", x.round(), y, list("abcdefghi")).exact


class TestLeavingOut:
    def test_each_model(self) -> None:
        x, y = scores(5)
        found = without_each(x, y, list("abcde"))
        assert list(found) == list("abcde")
        assert found["b"] == pytest.approx(stats.pearsonr(np.delete(x, 1), np.delete(y, 1)).statistic)

    def test_each_family(self) -> None:
        x, y = scores()
        found = without_each(x, y, FAMILIES)
        assert found["family 1"] == pytest.approx(stats.pearsonr(np.delete(x, [2, 3]), np.delete(y, [2, 3])).statistic)

    def test_too_many_or_the_only_other_score_gives_nothing(self) -> None:
        x, y = np.array([1.0, 1, 1, 2]), np.arange(4.0)
        assert list(without_each(x, y, list("abcd"))) == ["a", "b", "c"]
        assert without_each(x, y, list("aabb")) == {}


class TestIntervalsByFisher:
    @pytest.mark.parametrize(
        ("models", "low", "high", "critical"),
        [(8, 0.14, 0.96, 0.707), (12, 0.35, 0.93, 0.576), (15, 0.42, 0.92, 0.514), (20, 0.49, 0.90, 0.444)],
    )
    def test_of_the_papers_figure(self, models: int, low: float, high: float, critical: float) -> None:
        """r = .768 of an unstated number of models (arXiv 2410.07173)."""
        assert fisher_interval(0.768, models) == pytest.approx((low, high), abs=0.005)
        assert critical_correlation(models) == pytest.approx(critical, abs=0.0005)

    def test_are_those_of_scipy(self) -> None:
        x, y = scores()
        found = stats.pearsonr(x, y)
        assert fisher_interval(found.statistic, 12) == pytest.approx(tuple(found.confidence_interval()))

    def test_of_a_perfect_correlation_are_that_value(self) -> None:
        assert fisher_interval(-1.0, 8) == (-1.0, -1.0)


class TestPower:
    def test_is_that_of_r(self) -> None:
        """`pwr.r.test(r = 0.3, n = 50)` of R's package pwr prints 0.5715558."""
        assert power(0.3, 50) == pytest.approx(0.5715558, abs=1e-7)

    def test_is_the_share_of_significant_samples(self) -> None:
        generator = np.random.default_rng(0)
        x, rest = generator.standard_normal((2, 20_000, 12))
        for r in (0.0, 0.5, 0.72):
            found = stats.pearsonr(x, r * x + math.sqrt(1 - r**2) * rest, axis=1).pvalue
            assert power(r, 12) == pytest.approx(np.mean(found < 0.05), abs=0.015)

    def test_a_detectable_correlation_has_the_power(self) -> None:
        for models in (4, 8, 12, 20, 161):
            assert power(detectable_correlation(models), models) == pytest.approx(0.8)
        assert detectable_correlation(12) == pytest.approx(0.718, abs=0.001)

    def test_a_critical_correlation_is_that_of_the_exact_distribution(self) -> None:
        for models in (4, 8, 50):
            half = models / 2 - 1
            assert critical_correlation(models) == pytest.approx(2 * stats.beta.ppf(0.975, half, half) - 1)


class TestPartialCorrelation:
    def test_is_the_formula_of_three_coefficients(self) -> None:
        x, y = scores(10)
        size = np.random.default_rng(1).standard_normal(10) + x
        found = partial_correlation(x, y, size[:, None])
        xy, xs, ys = (stats.pearsonr(*pair).statistic for pair in ((x, y), (x, size), (y, size)))
        expected = (xy - xs * ys) / math.sqrt((1 - xs**2) * (1 - ys**2))
        assert found.value == pytest.approx(expected)
        t = expected * math.sqrt(7 / (1 - expected**2))
        assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 7))
        half = 1.959964 / math.sqrt(10 - 1 - 3)
        assert (found.low, found.high) == pytest.approx(tuple(np.tanh(np.arctanh(expected) + np.array([-half, half]))))

    def test_vanishes_where_size_explains_both(self) -> None:
        size, one, other = np.random.default_rng(0).standard_normal((3, 400))
        x, y = size + 0.3 * one, size + 0.3 * other
        assert stats.pearsonr(x, y).statistic > 0.9
        found = partial_correlation(x, y, size[:, None])
        assert found.low < 0 < found.high

    def test_of_too_few_models_or_an_explained_score_is_not_known(self) -> None:
        x, y = scores(4)
        assert partial_correlation(x, y, np.arange(4.0)[:, None]) is None
        x, y = scores(8)
        assert partial_correlation(x, y, 3 * x[:, None] + 1) is None

    def test_a_control_that_is_constant_controls_nothing(self) -> None:
        x, y = scores(8)
        found = partial_correlation(x, y, np.ones((8, 1)))
        assert found.value == pytest.approx(stats.pearsonr(x, y).statistic)
        assert found.p == pytest.approx(stats.pearsonr(x, y).pvalue)

    def test_within_families_is_that_of_the_deviations_from_their_means(self) -> None:
        x, y = scores()
        found = within_families(x, y, FAMILIES)
        apart = [each - each.reshape(6, 2).mean(1).repeat(2) for each in (x, y)]
        assert found.value == pytest.approx(stats.pearsonr(*apart).statistic)
        # Twelve models, six means and one slope.
        t = found.value * math.sqrt(5 / (1 - found.value**2))
        assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 5))

    def test_families_of_one_model_are_left_out(self) -> None:
        x, y = scores()
        assert within_families(x, y, [*FAMILIES[:10], "one", "two"]).models == 10
        assert within_families(x, y, [str(i) for i in range(12)]) is None


class TestErrorsOfMeasurement:
    def test_are_corrected_for(self) -> None:
        generator = np.random.default_rng(0)
        true = generator.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 1000).T
        x, y = (each + 0.7 * generator.standard_normal(1000) for each in true)
        errors = np.full(1000, 0.7)
        found = measurement(x, y, errors, errors)
        assert stats.pearsonr(x, y).statistic == pytest.approx(0.8 / 1.49, abs=0.04)
        assert (found.reliability_x, found.reliability_y) == pytest.approx((1 / 1.49,) * 2, abs=0.03)
        assert found.corrected == pytest.approx(0.8, abs=0.05)

    def test_move_the_correlation_as_a_repetition_would(self) -> None:
        x, y = scores()
        errors = np.full(12, 0.2)
        found = measurement(x, y, errors, 0 * errors)
        generator = np.random.default_rng(1)
        repeated = [stats.pearsonr(x + 0.2 * generator.standard_normal(12), y).statistic for _ in range(1000)]
        assert found.again == pytest.approx(tuple(np.quantile(repeated, [0.025, 0.975])), abs=0.02)
        assert found.reliability_y == 1

    def test_that_explain_all_variance_leave_nothing_to_correct(self) -> None:
        x, y = scores()
        found = measurement(x, y, np.full(12, 9.0), np.zeros(12))
        assert (found.reliability_x, found.corrected) == (0, None)

    def test_of_0_change_nothing(self) -> None:
        x, y = scores()
        found = measurement(x, y, np.zeros(12), np.zeros(12))
        r = stats.pearsonr(x, y).statistic
        assert (*found.again, found.corrected) == pytest.approx((r, r, r))


class TestLine:
    def test_predicts_by_the_formula_of_regression(self) -> None:
        x, y = scores(10)
        line = fit_line(x, y)
        design = np.column_stack([np.ones(10), x])
        inverse = np.linalg.inv(design.T @ design)
        fitted = inverse @ design.T @ y
        variance = ((y - design @ fitted) ** 2).sum() / 8
        new = np.array([1, 0.4])
        half = stats.t.ppf(0.975, 8) * math.sqrt(variance * (1 + new @ inverse @ new))
        found = line.predict(0.4)
        assert (found.value, found.low, found.high) == pytest.approx((new @ fitted, *(new @ fitted + [-half, half])))
        assert not found.extrapolates
        half = stats.t.ppf(0.975, 8) * math.sqrt(variance * (new @ inverse @ new))
        assert line.band(0.4).high - line.band(0.4).value == pytest.approx(half)

    def test_intervals_hold_a_new_model_as_often_as_they_say(self) -> None:
        generator = np.random.default_rng(0)
        inside = []
        for _ in range(2000):
            x, rest = generator.standard_normal((2, 9))
            y = 2 * x + rest
            found = fit_line(x[:8], y[:8]).predict(x[8])
            inside.append(found.low <= y[8] <= found.high)
        assert np.mean(inside) == pytest.approx(0.95, abs=0.015)

    def test_has_the_error_of_predicting_each_model_by_the_others(self) -> None:
        x, y = scores(10)
        by_line, by_mean = [], []
        for i in range(10):
            others = np.delete(x, i), np.delete(y, i)
            by_line.append(y[i] - fit_line(*others).predict(x[i]).value)
            by_mean.append(y[i] - others[1].mean())
        found = fit_line(x, y)
        expected = [math.sqrt(np.mean(np.square(errors))) for errors in (by_line, by_mean)]
        assert [found.left_out, found.left_out_mean] == pytest.approx(expected)

    def test_says_when_it_extrapolates(self) -> None:
        line = fit_line(*scores())
        assert [line.predict(x).extrapolates for x in (line.least - 0.1, line.least, line.most, line.most + 0.1)] == [
            True,
            False,
            False,
            True,
        ]


class TestTwoLanguageScores:
    def test_differ_by_the_test_of_williams(self) -> None:
        """`r.test(103, .4, .5, .1)` of R's package psych prints t = -0.89 with p < 0.37, Steiger's example."""
        wanted = np.array([[1, 0.4, 0.5], [0.4, 1, 0.1], [0.5, 0.1, 1]])
        # Scores of which these are the exact correlations.
        raw = np.random.default_rng(0).standard_normal((103, 3))
        raw = np.linalg.qr(raw - raw.mean(0))[0] @ np.linalg.cholesky(wanted).T
        found = compare_correlations(*raw.T)
        assert (round(found.t, 2), round(found.p, 2), found.models) == (-0.89, 0.37, 103)

    def test_that_correlate_equally_seldom_differ(self) -> None:
        generator = np.random.default_rng(0)
        covariance = [[1, 0.6, 0.6], [0.6, 1, 0.5], [0.6, 0.5, 1]]
        found = [
            compare_correlations(*generator.multivariate_normal([0, 0, 0], covariance, 12).T).p for _ in range(3000)
        ]
        assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.015)

    def test_that_are_the_same_or_too_few_are_not_compared(self) -> None:
        x, y = scores(8)
        assert compare_correlations(y, x, 2 * x + 1) is None
        assert compare_correlations(y[:3], x[:3], y[:3]) is None
        assert compare_correlations(y, x, np.ones(8)) is None
