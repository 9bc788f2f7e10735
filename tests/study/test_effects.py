"""What a study says, against naive formulas and scipy."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from sharelock_ray.study.effects import (
    heat_map,
    main_effects,
    pareto,
    ranked,
    t_interval,
    variance_shares,
    with_doubles,
)
from sharelock_ray.study.trials import Double, Point, Trial

AXES = {"depth": (2, 4, 6), "width": (32, 64), "activation": ("relu", "gelu")}
SEEDS = (0, 1, 2)


def trial(point: dict[str, object], seed: int, value: float, state: str = "finished") -> Trial:
    values = {"recall_at_1": value, "parameters": 10.0}
    return Trial(point=point, seed=seed, run=f"runs/{point}-{seed}", state=state, values=values)


def grid(effect, axes=AXES, seeds=SEEDS) -> list[Trial]:
    """A trial for each point and seed; `effect(point, seed)` is its recall."""
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [trial(point, seed, effect(point, seed)) for point in points for seed in seeds]


def noisy(point: dict[str, object], seed: int) -> float:
    generator = np.random.default_rng([seed, int(point["depth"]), int(point["width"]), len(str(point["activation"]))])
    crossed = 0.2 * (point["depth"] == 4) * (point["width"] == 64)
    return 0.1 * int(point["depth"]) + 0.002 * int(point["width"]) + crossed + generator.normal(0, 0.05)


class TestIntervals:
    def test_are_those_of_students_t(self) -> None:
        values = [0.3, 0.5, 0.4, 0.45]
        found = t_interval(values)
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx(expected)

    def test_of_one_value_are_not_known(self) -> None:
        found = t_interval([0.5])
        assert (found.value, found.low, found.high) == (0.5, None, None)

    def test_cover_the_truth_as_often_as_they_say(self) -> None:
        generator = np.random.default_rng(0)
        intervals = [t_interval(generator.normal(1, 2, 3)) for _ in range(2000)]
        assert np.mean([i.low <= 1 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.015)


class TestIntervalsOfShares:
    def test_contain_the_mean_and_stay_between_0_and_1(self) -> None:
        for seed in range(200):
            values = np.random.default_rng(seed).beta(0.3, 0.3, 2 + seed % 5)
            found = t_interval(values, share=True)
            assert 0 <= found.low <= found.value <= found.high <= 1
        # Student's own goes from 95.1 % to 103.0 %.
        assert t_interval([0.975, 1.0, 0.9975], share=True).high < 1

    def test_are_those_of_the_logits_mean_by_the_delta_method(self) -> None:
        values = [0.3, 0.5, 0.4, 0.45]
        mean, step = np.mean(values), 1e-6
        slope = (np.log((mean + step) / (1 - mean - step)) - np.log((mean - step) / (1 - mean + step))) / (2 * step)
        scaled = stats.t.interval(0.95, 3, loc=np.log(mean / (1 - mean)), scale=stats.sem(values) * slope)
        found = t_interval(values, share=True)
        assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-np.array(scaled)))))

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    def test_of_equal_values_are_that_value(self, value: float) -> None:
        found = t_interval([value] * 3, share=True)
        assert (found.value, found.low, found.high) == pytest.approx((value, value, value))

    def test_cover_the_truth_as_often_as_they_say(self) -> None:
        generator = np.random.default_rng(0)
        intervals = [t_interval(generator.beta(47.5, 2.5, 3), share=True) for _ in range(2000)]
        assert np.mean([i.low <= 0.95 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.025)


class TestRanking:
    def test_is_by_the_mean_over_seeds(self) -> None:
        points = ranked(grid(lambda p, s: 0.01 * p["depth"] + 0.1 * s), "recall_at_1")
        assert [point.point["depth"] for point in points] == [6] * 4 + [4] * 4 + [2] * 4
        assert points[0].values["recall_at_1"].value == pytest.approx(0.16)
        assert points[0].seeds == 3

    def test_lower_is_better_where_it_is(self) -> None:
        losses = [
            Trial(point={"depth": d}, seed=0, run="", state="finished", values={"validation_loss": d})
            for d in (3, 1, 2)
        ]
        assert [point.point["depth"] for point in ranked(losses, "validation_loss")] == [1, 2, 3]

    def test_a_point_with_a_lost_seed_is_not_the_best_by_luck(self) -> None:
        trials = [trial({"depth": 2}, 0, 0.9), trial({"depth": 2}, 1, 0.0, "diverged")]
        trials += [trial({"depth": 4}, seed, 0.5) for seed in (0, 1)]
        assert [point.point["depth"] for point in ranked(trials, "recall_at_1")] == [4, 2]

    @staticmethod
    def by_depth(values: dict[int, list[float]]) -> list[Point]:
        trials = [trial({"depth": d}, seed, v) for d, of in values.items() for seed, v in enumerate(of)]
        return ranked(trials, "recall_at_1")

    def test_compares_with_the_best_by_paired_t_tests_with_holms_correction(self) -> None:
        generator = np.random.default_rng(0)
        luck = generator.normal(0, 0.1, 5)
        values = {d: (0.5 - 0.01 * d + luck + generator.normal(0, 0.01, 5)).tolist() for d in range(6)}
        best, *others = self.by_depth(values)
        raw = [stats.ttest_rel(values[best.point["depth"]], values[p.point["depth"]]).pvalue for p in others]
        for one, p in zip(others, raw, strict=True):
            # The largest of what Holm's steps ask of all p up to this one.
            asked = max(q * (len(raw) - sum(r < q for r in raw)) for q in raw if q <= p)
            assert one.p == pytest.approx(min(1, asked))
        assert [p.is_tied for p in others] == [p.p >= 0.05 for p in others]
        assert {p.is_tied for p in others} == {True, False}

    def test_seeds_that_move_all_points_alike_hide_no_difference(self) -> None:
        # The intervals of both points overlap.
        (_, other) = self.by_depth({2: [0.30, 0.50, 0.70], 4: [0.28, 0.481, 0.679]})
        assert not other.is_tied

    def test_differences_of_either_sign_are_a_tie(self) -> None:
        (_, other) = self.by_depth({2: [0.50, 0.52, 0.54], 4: [0.51, 0.51, 0.53]})
        assert other.is_tied

    def test_equal_points_are_tied_and_equal_differences_are_none_by_chance(self) -> None:
        (_, same, worse) = self.by_depth({2: [0.5, 0.75], 4: [0.5, 0.75], 6: [0.25, 0.5]})
        assert (same.p, worse.p) == (1, 0)

    def test_says_nothing_of_a_single_seed_nor_of_a_single_shared_one(self) -> None:
        assert all(p.p is None and p.is_tied for p in ranked(grid(noisy, seeds=(0,)), "recall_at_1")[1:])
        trials = [trial({"depth": 2}, seed, 0.9 + seed / 100) for seed in (0, 1)]
        trials += [trial({"depth": 4}, seed, 0.1 + seed / 100) for seed in (1, 2)]
        assert ranked(trials, "recall_at_1")[1].p is None


class TestMainEffects:
    def test_are_marginal_means_with_intervals_over_seeds(self) -> None:
        trials = grid(noisy)
        depth = main_effects(trials, AXES, "recall_at_1")[0]
        assert (depth.axis, depth.basis) == ("depth", "seeds")
        for level, value in zip(depth.levels, AXES["depth"], strict=True):
            by_seed = [
                np.mean([t.values["recall_at_1"] for t in trials if t.point["depth"] == value and t.seed == seed])
                for seed in SEEDS
            ]
            assert level.trials == 12
            assert level.mean == t_interval(by_seed, share=True)
        assert depth.span == pytest.approx(depth.levels[-1].mean.value - depth.levels[0].mean.value)

    def test_of_an_incomplete_grid_have_intervals_over_trials(self) -> None:
        trials = grid(noisy)[:-1]
        (depth, *_) = main_effects(trials, AXES, "recall_at_1")
        values = [t.values["recall_at_1"] for t in trials if t.point["depth"] == 2]
        assert depth.basis == "trials"
        assert depth.levels[0].mean.value == pytest.approx(np.mean(values))
        assert min(values) <= depth.levels[0].mean.low < depth.levels[0].mean.high <= max(values)

    def test_cut_a_range_into_levels_of_equally_many_trials(self) -> None:
        trials = [trial({"rate": rate}, 0, rate) for rate in np.geomspace(1e-4, 1e-2, 9).tolist()]
        (rate,) = main_effects(trials, {"rate": None}, "recall_at_1")
        assert [level.trials for level in rate.levels] == [3, 3, 3]
        assert rate.levels[0].label == "0.0001 to 0.000316"

    def test_tell_true_from_one(self) -> None:
        trials = [trial({"learn": value}, 0, float(value)) for value in (True, False)]
        (learn,) = main_effects(trials, {"learn": (True, False, 1)}, "recall_at_1")
        assert [level.label for level in learn.levels] == ["True", "False"]


class TestVariance:
    def test_one_factor_of_two_values_gives_the_paired_t_test_of_scipy(self) -> None:
        axes = {"depth": (2, 4)}
        trials = grid(lambda p, s: noisy({"width": 0, "activation": ""} | p, s) + s, axes)
        groups = [[t.values["recall_at_1"] for t in trials if t.point["depth"] == d] for d in axes["depth"]]
        (depth, rest) = variance_shares(trials, axes, "recall_at_1")
        assert depth.p == pytest.approx(stats.ttest_rel(*groups).pvalue)
        assert depth.share + rest.share == pytest.approx(1)

    def test_its_f_tests_are_those_of_a_regression_with_the_seeds_as_blocks(self) -> None:
        trials = grid(noisy)
        y = np.array([t.values["recall_at_1"] for t in trials])
        cells = np.array([[t.point == point for point in [t.point for t in trials[::3]]] for t in trials], float)
        seeds = np.array([[t.seed == seed for seed in SEEDS] for t in trials], float)
        x = np.concatenate([cells, seeds], axis=1)
        noise = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        freedom = len(y) - np.linalg.matrix_rank(x)
        means = [np.mean([t.values["recall_at_1"] for t in trials if t.point["width"] == w]) for w in AXES["width"]]
        squares = len(y) / 2 * np.square(means - y.mean()).sum()
        (width,) = (each for each in variance_shares(trials, AXES, "recall_at_1") if each.axes == ("width",))
        assert width.p == pytest.approx(stats.f.sf(squares / (noise @ noise / freedom), 1, freedom))

    def test_shares_are_those_of_a_regression_on_dummy_variables(self) -> None:
        trials = grid(noisy)
        y = np.array([t.values["recall_at_1"] for t in trials])

        def dummies(axis: str) -> np.ndarray:
            return np.array([[t.point[axis] == value for value in AXES[axis]] for t in trials], float)

        def explained(*columns: np.ndarray) -> float:
            x = np.concatenate([np.ones((len(y), 1)), *columns], axis=1)
            left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
            return 1 - (left @ left) / ((y - y.mean()) @ (y - y.mean()))

        shares = {each.axes: each.share for each in variance_shares(trials, AXES, "recall_at_1")}
        for axis in AXES:
            assert shares[(axis,)] == pytest.approx(explained(dummies(axis)))
        for one, other in itertools.combinations(AXES, 2):
            crossed = np.einsum("ni,nj->nij", dummies(one), dummies(other)).reshape(len(y), -1)
            both = explained(crossed) - explained(dummies(one)) - explained(dummies(other))
            assert shares[(one, other)] == pytest.approx(both, abs=1e-12)
        assert sum(shares.values()) == pytest.approx(1)

    def test_noise_alone_is_called_noise(self) -> None:
        trials = grid(lambda p, s: np.random.default_rng([s, *str(p).encode()]).normal())
        assert all(each.p > 0.01 for each in variance_shares(trials, AXES, "recall_at_1") if each.axes)

    def test_an_interaction_shows_as_one(self) -> None:
        crossed = grid(
            lambda p, s: float((p["depth"] == 2) == (p["width"] == 32)) + 0.001 * s,
            {"depth": (2, 4), "width": (32, 64)},
        )
        (first, *_) = variance_shares(crossed, {"depth": (2, 4), "width": (32, 64)}, "recall_at_1")
        assert first.axes == ("depth", "width")
        assert first.share > 0.99

    @pytest.mark.parametrize("trials", [grid(noisy)[1:], [], grid(lambda p, s: 0.5)])
    def test_is_not_known_without_the_whole_grid_or_without_variance(self, trials: list[Trial]) -> None:
        assert variance_shares(trials, AXES, "recall_at_1") is None

    def test_is_not_known_over_a_range(self) -> None:
        assert variance_shares([trial({"rate": 0.1}, 0, 1.0)], {"rate": None}, "recall_at_1") is None

    def test_of_one_seed_has_no_test_of_noise(self) -> None:
        shares = variance_shares(grid(noisy, seeds=(0,)), AXES, "recall_at_1")
        assert all(each.p is None for each in shares)


class TestDoubles:
    """Depth 1 has no hidden layer: its model is the same with any width and activation, and is trained once."""

    AXES: ClassVar = {"depth": (1, 2, 4), "activation": ("relu", "gelu")}
    DOUBLES = (Double(point={"depth": 1, "activation": "gelu"}, same_as={"depth": 1, "activation": "relu"}),)

    @pytest.fixture
    def trials(self) -> list[Trial]:
        def recall(point: dict[str, object], seed: int) -> float:
            noise = np.random.default_rng([seed, *str(point).encode()]).normal(0, 0.01)
            return 0.1 * point["depth"] + 0.2 * (point["activation"] == "gelu") + noise

        trials = [t for t in grid(recall, self.AXES) if t.point != self.DOUBLES[0].point]
        return [
            t.model_copy(update={"without_effect": ("activation",)}) if t.point["depth"] == 1 else t for t in trials
        ]

    def test_are_no_level_of_a_factor_that_changes_nothing_of_them(self, trials: list[Trial]) -> None:
        depth, activation = main_effects(trials, self.AXES, "recall_at_1", self.DOUBLES)
        assert [level.trials for level in depth.levels] == [3, 6, 6]
        deeper = [t for t in trials if t.point["depth"] > 1]
        for level in activation.levels:
            values = [t.values["recall_at_1"] for t in deeper if t.point["activation"] == level.label]
            assert (level.trials, level.mean.value) == (6, pytest.approx(np.mean(values)))
        # The grid is whole, so the intervals are the seeds'.
        assert (depth.basis, activation.basis) == ("seeds", "seeds")

    def test_are_not_counted_in_the_variance(self, trials: list[Trial]) -> None:
        deeper = [t for t in trials if t.point["depth"] > 1]
        expected = variance_shares(deeper, {"depth": (2, 4), "activation": ("relu", "gelu")}, "recall_at_1")
        assert variance_shares(trials, self.AXES, "recall_at_1", self.DOUBLES) == expected

    def test_hide_no_trial_that_is_missing(self, trials: list[Trial]) -> None:
        lost = [t for t in trials if t.point["depth"] != 4]
        assert variance_shares(lost, self.AXES, "recall_at_1", self.DOUBLES) is None
        (depth, _) = main_effects(lost, self.AXES, "recall_at_1", self.DOUBLES)
        assert depth.basis == "trials"

    def test_fill_their_cells_of_a_heat_map(self, trials: list[Trial]) -> None:
        axes = list(self.AXES.items())
        found = heat_map(with_doubles(trials, self.DOUBLES), *axes, "recall_at_1")
        assert found[0, 0] == found[0, 1]
        assert np.isfinite(found).all()

    def test_are_one_point_of_the_ranking(self, trials: list[Trial]) -> None:
        points = ranked(trials, "recall_at_1")
        assert len(points) == 5
        assert [p.point["depth"] for p in points if p.without_effect] == [1]


class TestPareto:
    @pytest.mark.parametrize("seed", range(20))
    def test_is_what_comparing_every_pair_finds(self, seed: int) -> None:
        # Few distinct values, so that ties and equal pairs occur.
        pairs = np.random.default_rng(seed).integers(0, 6, (30, 2)).astype(float)
        quality, cost = pairs.T
        beaten = [
            any(
                quality[j] >= quality[i] and cost[j] <= cost[i] and (quality[j] > quality[i] or cost[j] < cost[i])
                for j in range(len(pairs))
            )
            for i in range(len(pairs))
        ]
        found = pareto([tuple(pair) for pair in pairs], "higher", "lower")
        assert sorted(found) == np.flatnonzero(~np.array(beaten)).tolist()
        assert cost[found].tolist() == sorted(cost[found])

    def test_of_nothing_is_nothing(self) -> None:
        assert pareto([], "lower", "lower") == []


def test_a_heat_map_is_a_mean_of_each_cell_and_empty_where_there_is_none() -> None:
    trials = [t for t in grid(noisy) if t.point != {"depth": 2, "width": 32, "activation": "relu"}]
    trials = [t for t in trials if (t.point["depth"], t.point["width"]) != (6, 64)]
    found = heat_map(trials, ("depth", AXES["depth"]), ("width", AXES["width"]), "recall_at_1")
    cell = [t.values["recall_at_1"] for t in trials if (t.point["depth"], t.point["width"]) == (4, 64)]
    assert found[1, 1] == pytest.approx(np.mean(cell))
    assert np.isnan(found[2, 1])
    assert np.isfinite(found).sum() == 5
