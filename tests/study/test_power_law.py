"""Power laws of a score by data size: known ones are found, and their intervals hold the truth."""

import numpy as np
import pytest
from scipy import optimize

from sharelock_ray.errors import RequestError
from sharelock_ray.study.power_law import fit_power_law

SIZES = [1000.0, 3000, 10_000, 30_000, 100_000, 300_000]


def law(n: np.ndarray, limit: float = 0.6, gain: float = 8.0, exponent: float = 0.45) -> np.ndarray:
    return limit - gain * np.asarray(n, float) ** -exponent


def noisy(noise: float = 0.01, seeds: int = 3, seed: int = 0, **of: float) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.repeat(SIZES, seeds)
    return sizes, law(sizes, **of) + noise * np.random.default_rng(seed).standard_normal(len(sizes))


class TestFit:
    def test_finds_an_exact_law(self) -> None:
        found = fit_power_law(SIZES, law(SIZES))
        values = (found.limit.value, found.gain.value, found.exponent.value)
        assert values == pytest.approx((0.6, 8.0, 0.45), rel=1e-4)
        assert found.residual == pytest.approx(0, abs=1e-7)

    def test_finds_the_law_of_an_error_that_falls(self) -> None:
        found = fit_power_law(SIZES, law(SIZES, 0.2, -30, 0.6))
        assert (found.limit.value, found.gain.value) == pytest.approx((0.2, -30), rel=1e-4)

    def test_is_the_least_squares_fit_of_scipy(self) -> None:
        sizes, scores = noisy()
        found = fit_power_law(sizes, scores)
        (limit, gain, exponent), _ = optimize.curve_fit(law, sizes, scores, p0=(0.5, 5, 0.5))
        assert (found.limit.value, found.gain.value, found.exponent.value) == pytest.approx(
            (limit, gain, exponent), rel=1e-3
        )
        rest = scores - law(sizes, limit, gain, exponent)
        assert found.residual == pytest.approx(np.sqrt((rest**2).sum() / (len(sizes) - 3)), rel=1e-4)

    def test_units_of_size_change_only_the_gain(self) -> None:
        sizes, scores = noisy()
        pairs, millions = fit_power_law(sizes, scores), fit_power_law(sizes / 1e6, scores)
        assert millions.limit == pairs.limit
        assert millions.exponent == pairs.exponent
        assert millions.gain.value == pytest.approx(pairs.gain.value * 1e-6**pairs.exponent.value)

    def test_says_the_curve_at_wanted_sizes(self) -> None:
        sizes, scores = noisy()
        found = fit_power_law(sizes, scores, at=[30_000, 1e7])
        assert found.sizes == (30_000, 1e7)
        assert [each.value for each in found.curve] == pytest.approx(
            law([30_000, 1e7], found.limit.value, found.gain.value, found.exponent.value)
        )
        # Far from the data, the curve is less known.
        assert np.ptp([found.curve[1].low, found.curve[1].high]) > np.ptp([found.curve[0].low, found.curve[0].high])
        assert fit_power_law(sizes, scores).sizes == tuple(SIZES)


class TestIntervals:
    def test_hold_the_truth_about_as_often_as_they_say(self) -> None:
        fits = [fit_power_law(*noisy(seed=seed), at=[30_000]) for seed in range(100)]
        for name, truth in (("limit", 0.6), ("exponent", 0.45)):
            found = [getattr(fit, name) for fit in fits]
            assert 0.88 <= np.mean([each.low <= truth <= each.high for each in found]) <= 1
        assert 0.88 <= np.mean([fit.curve[0].low <= law(30_000) <= fit.curve[0].high for fit in fits]) <= 1

    def test_are_wider_with_more_noise(self) -> None:
        little, much = (fit_power_law(*noisy(noise)).exponent for noise in (0.003, 0.03))
        assert much.high - much.low > 2 * (little.high - little.low)

    def test_are_the_same_each_time(self) -> None:
        assert fit_power_law(*noisy()) == fit_power_law(*noisy())

    def test_a_curve_that_does_not_bend_has_no_known_limit(self) -> None:
        sizes = np.repeat(SIZES, 3)
        scores = 0.05 * np.log(sizes) + 0.002 * np.random.default_rng(0).standard_normal(len(sizes))
        assert not fit_power_law(sizes, scores).bends
        assert fit_power_law(*noisy()).bends


class TestDegenerateInput:
    @pytest.mark.parametrize(
        ("sizes", "scores", "message"),
        [
            ([1, 2, 3, 3], [0.1, 0.2, 0.3, 0.3], "at least four sizes, not 3"),
            ([1, 2, 3, 4], [0.5] * 4, "scores that differ: all 4 are 0.5"),
            ([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4], "sizes above 0"),
            ([1, 2, 3, 4], [0.1, 0.2, float("nan"), 0.4], "one finite score for each size"),
            ([1, 2, 3, 4], [0.1, 0.2, 0.3], "one finite score for each size"),
            ([], [], "at least four sizes, not 0"),
        ],
    )
    def test_is_one_line(self, sizes: list[float], scores: list[float], message: str) -> None:
        with pytest.raises(RequestError, match=message) as error:
            fit_power_law(sizes, scores)
        assert "\n" not in str(error.value)
