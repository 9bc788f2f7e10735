"""Statistics of a study: the ranking of points, the effects of factors, and tests against the noise of the seeds."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from sharelock_ray.evaluation.statistics import estimate, holm
from sharelock_ray.study.trials import LOWER_IS_BETTER, SHARES, Double, Interval, Point, Trial

_ROUNDING = 1e-20
"""Relative rounding error of sums of squares in float64; a smaller share counts as zero."""
_LEVELS = 3
"""Number of levels of a range; each has the same number of trials."""


def t_interval(values: Sequence[float] | np.ndarray, share: bool = False) -> Interval:
    """Mean of `values` with Student's 95 % interval: mean ± t(0.975, n - 1) s / sqrt(n).

    Args:
        share: whether `values` are proportions. Student's interval is then computed for the mean's logit (delta method:
            s is divided by mean (1 - mean)) and transformed back, so that it lies between 0 and 1; compare the logit
            interval of Brown, Cai and DasGupta (Statistical Science 16:101, 2001). If all values are equal, the
            interval is that value.

    Raises:
        ValueError: `values` is empty.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    if share and half:
        half /= mean * (1 - mean)
        return Interval(mean, float(expit(logit(mean) - half)), float(expit(logit(mean) + half)))
    return Interval(mean, mean - half, mean + half)


def ranked(trials: Iterable[Trial], objective: str) -> list[Point]:
    """Points of finished trials, best first; points with fewer finished seeds come last.

    A point with a diverged or pruned seed therefore cannot win by its lucky seeds alone.

    Each point is compared with the first by a two-sided paired t-test over seeds, since a seed sets the order of pairs
    and the initial weights alike for all points (arXiv 2103.03098 recommends pairing). p-values have Holm's
    correction. Rank tests cannot reach p < 0.05 with five seeds or fewer. Points are tied if p is at least 0.05 or
    unknown, as with a single seed.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.state == "finished" and objective in trial.values:
            groups.setdefault(repr(sorted(trial.point.items())), []).append(trial)
    points = [
        Point(
            point=group[0].point,
            seeds=len(group),
            values={
                name: t_interval([trial.values[name] for trial in group if name in trial.values], name in SHARES)
                for name in group[0].values
            },
            runs=tuple(trial.run for trial in sorted(group, key=lambda trial: trial.seed)),
            by_seed={trial.seed: trial.values[objective] for trial in group},
            without_effect=group[0].without_effect,
        )
        for group in groups.values()
    ]
    sign = 1 if objective in LOWER_IS_BETTER else -1
    points.sort(key=lambda point: (-point.seeds, sign * point.values[objective].value))
    found = [_differences(points[0], point) for point in points[1:]]
    tested = [_paired(differences) for differences in found]
    corrected = iter(holm([p for p in tested if p is not None]))
    return points[:1] + [
        replace(
            point,
            difference=t_interval(differences) if len(differences) else None,
            p=None if p is None else next(corrected),
        )
        for point, differences, p in zip(points[1:], found, tested, strict=True)
    ]


def _differences(best: Point, other: Point) -> np.ndarray:
    """Differences from the best point, one for each shared seed."""
    shared = best.by_seed.keys() & other.by_seed.keys()
    return np.array([other.by_seed[seed] - best.by_seed[seed] for seed in shared])


def _paired(differences: np.ndarray) -> float | None:
    """p-value of the paired t-test; None if there are fewer than two differences."""
    if len(differences) < 2:
        return None
    mean, spread = differences.mean(), differences.std(ddof=1)
    if not spread:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / spread * math.sqrt(len(differences)), len(differences) - 1))


@dataclass(frozen=True)
class Level:
    """One value of a factor, or one interval of a range, with the mean over its trials."""

    label: str
    trials: int
    mean: Interval


@dataclass(frozen=True)
class Effect:
    """Main effect of a factor: its marginal means."""

    axis: str
    levels: tuple[Level, ...]
    basis: str
    """Basis of the intervals: `seeds` (t-interval over the seeds' means) or `trials` (bootstrap over trials)."""

    @property
    def span(self) -> float:
        """Largest difference between marginal means."""
        means = [level.mean.value for level in self.levels]
        return max(means) - min(means)


def with_doubles(trials: Iterable[Trial], doubles: Iterable[Double]) -> list[Trial]:
    """`trials`, plus copies of them for each point that gives the same model."""
    trials = list(trials)
    return trials + [
        trial.model_copy(update={"point": double.point})
        for double in doubles
        for trial in trials
        if trial.point == double.same_as
    ]


def main_effects(
    trials: Sequence[Trial],
    axes: Mapping[str, Sequence[Any] | None],
    objective: str,
    doubles: Sequence[Double] = (),
) -> list[Effect]:
    """Marginal means of every factor over finished trials.

    A trial on which a factor has no effect, such as the activation at depth 1, belongs to none of its levels.

    If each seed has trained the whole grid, a level has one mean per seed, and its interval is computed over these; the
    spread due to other factors is excluded. Otherwise the interval is a percentile bootstrap over the level's trials,
    which includes that spread.
    """
    finished = _finished(trials, objective)
    whole = _grid(with_doubles(finished, doubles), axes, objective) is not None
    by_seeds = whole and len(_seeds(finished)) > 1
    effects = []
    for axis in axes:
        groups = _levels([trial for trial in finished if axis not in trial.without_effect], axis, axes[axis])
        levels = []
        for label, group in groups.items():
            if by_seeds:
                means = [_mean(group, objective, seed) for seed in _seeds(finished)]
                interval = t_interval(means, objective in SHARES)
            else:
                found = estimate(np.array([trial.values[objective] for trial in group]))
                interval = Interval(found.value, found.low, found.high) if len(group) > 1 else Interval(found.value)
            levels.append(Level(label, len(group), interval))
        if levels:
            effects.append(Effect(axis, tuple(levels), "seeds" if by_seeds else "trials"))
    return effects


@dataclass(frozen=True)
class Share:
    """Share of the variance over a grid's trials; `axes` is one factor, or two for their interaction."""

    axes: tuple[str, ...]
    share: float
    p: float | None
    """p-value of an F test against the noise of the seeds, with seeds as blocks; None for a single seed."""


def variance_shares(
    trials: Sequence[Trial],
    axes: Mapping[str, Sequence[Any] | None],
    objective: str,
    doubles: Sequence[Double] = (),
) -> list[Share] | None:
    """Factorial analysis of variance of a balanced full grid: main effects and pairwise interactions.

    A share is a sum of squares of the functional ANOVA decomposition, up to order two, over the total. In a balanced
    design these are the classical sums of squares and add up. The remainder, with empty `axes`, holds interactions of
    higher order and the seeds.

    Levels at which another factor has no effect, such as depth 1 where activations are compared, are excluded;
    otherwise one model would count several times.

    Returns:
        largest share first, the remainder last; None if trials are missing or an axis is a range.
    """
    finished = _finished(trials, objective)
    plain = [trial for trial in finished if not trial.without_effect]
    points = [trial.point for trial in finished] + [double.point for double in doubles]
    axes = {axis: values and _kept(axis, values, points, plain) for axis, values in axes.items()}
    cells = _grid(plain, axes, objective)
    if cells is None:
        return None
    total = float(((cells - cells.mean()) ** 2).sum())
    if not total:
        return None
    seeds = cells.shape[-1]
    # An effect of a seed on all points alike is not noise between points.
    blocks = _component(cells, (cells.ndim - 1,))
    within = float(((cells - cells.mean(-1, keepdims=True) - blocks) ** 2).sum())
    freedom_within = (cells.size // seeds - 1) * (seeds - 1)
    names = [axis for axis in axes if len(axes[axis] or ()) > 1]
    position = {axis: i for i, axis in enumerate(axes)}

    def share(of: tuple[str, ...], squares: float, freedom: int) -> Share:
        p = None
        if freedom_within and within > _ROUNDING * total:
            p = float(stats.f.sf(squares / freedom / (within / freedom_within), freedom, freedom_within))
        return Share(of, squares / total, p)

    found = []
    main = {axis: _component(cells, (position[axis],)) for axis in names}
    for axis, effect in main.items():
        found.append(share((axis,), _squares(effect, cells), cells.shape[position[axis]] - 1))
    for one, other in itertools.combinations(names, 2):
        both = _component(cells, (position[one], position[other])) - main[one] - main[other]
        freedom = (cells.shape[position[one]] - 1) * (cells.shape[position[other]] - 1)
        found.append(share((one, other), _squares(both, cells), freedom))
    rest = max(0.0, 1 - sum(each.share for each in found))
    return [*sorted(found, key=lambda each: -each.share), Share((), rest, None)]


def _kept(axis: str, values: Sequence[Any], points: Sequence[Mapping[str, Any]], plain: Sequence[Trial]) -> list[Any]:
    """Values of an axis; excludes a tried value if a factor is without effect in each of its points."""
    tried, compared = ({_key(of[axis]) for of in each} for each in (points, [trial.point for trial in plain]))
    return [value for value in values if _key(value) in compared or _key(value) not in tried]


def _component(cells: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Marginal means of the axes `kept` minus the grand mean; the other axes have length 1."""
    others = tuple(i for i in range(cells.ndim) if i not in kept)
    return cells.mean(others, keepdims=True) - cells.mean()


def _squares(effect: np.ndarray, cells: np.ndarray) -> float:
    return float((effect**2).sum() * cells.size / effect.size)


def _grid(finished: Sequence[Trial], axes: Mapping[str, Sequence[Any] | None], objective: str) -> np.ndarray | None:
    """Values with one axis per factor and a last axis for seeds; None if a cell is empty."""
    if any(values is None for values in axes.values()):
        return None
    seeds = _seeds(finished)
    places = [{_key(value): i for i, value in enumerate(values or ())} for values in axes.values()]
    cells = np.full((*(len(place) for place in places), len(seeds)), np.nan)
    for trial in finished:
        cell = tuple(place[_key(trial.point[axis])] for place, axis in zip(places, axes, strict=True))
        cells[(*cell, seeds.index(trial.seed))] = trial.values[objective]
    return None if np.isnan(cells).any() or not cells.size else cells


def pareto(values: Sequence[tuple[float, float]], better_first: str, better_second: str) -> list[int]:
    """Indices of the pairs on the Pareto front: no other pair is at least as good in both values and better in one.

    Args:
        better_first, better_second: `higher` or `lower`, for each value of a pair.

    Returns:
        in ascending order of the second value.
    """
    signs = np.array([1 if which == "lower" else -1 for which in (better_first, better_second)])
    costs = np.asarray(values, np.float64).reshape(-1, 2) * signs
    found: list[int] = []
    best = math.inf
    # Sorted by the second value, then by the first, so that a later pair must be better in the first.
    for i in np.lexsort((costs[:, 0], costs[:, 1])):
        equal = bool(found) and bool((costs[i] == costs[found[-1]]).all())
        if costs[i, 0] < best or equal:
            found.append(int(i))
            best = min(best, float(costs[i, 0]))
    return found if signs[1] > 0 else found[::-1]


def heat_map(
    trials: Sequence[Trial], rows: tuple[str, Sequence[Any]], columns: tuple[str, Sequence[Any]], objective: str
) -> np.ndarray:
    """(R, C) means over the finished trials of each row's and column's value; NaN without trials."""
    finished = _finished(trials, objective)
    means = np.full((len(rows[1]), len(columns[1])), np.nan)
    for i, j in np.ndindex(means.shape):
        cell = [
            trial.values[objective]
            for trial in finished
            if (trial.point[rows[0]], trial.point[columns[0]]) == (rows[1][i], columns[1][j])
        ]
        if cell:
            means[i, j] = np.mean(cell)
    return means


def _finished(trials: Iterable[Trial], objective: str) -> list[Trial]:
    return [trial for trial in trials if trial.state == "finished" and objective in trial.values]


def _seeds(trials: Iterable[Trial]) -> list[int]:
    return sorted({trial.seed for trial in trials})


def _mean(trials: Iterable[Trial], objective: str, seed: int) -> float:
    return float(np.mean([trial.values[objective] for trial in trials if trial.seed == seed]))


def _levels(trials: Sequence[Trial], axis: str, values: Sequence[Any] | None) -> dict[str, list[Trial]]:
    """Trials by level of a factor, in the order of its values; levels without trials are omitted."""
    if values is not None:
        groups = {str(value): [t for t in trials if _key(t.point[axis]) == _key(value)] for value in values}
        return {label: group for label, group in groups.items() if group}
    ordered = sorted(trials, key=lambda trial: trial.point[axis])
    pieces = [ordered[len(ordered) * i // _LEVELS : len(ordered) * (i + 1) // _LEVELS] for i in range(_LEVELS)]
    return {f"{group[0].point[axis]:.3g} to {group[-1].point[axis]:.3g}": group for group in pieces if group}


def _key(value: Any) -> tuple[type, Any]:
    """Distinguishes True from 1, which are equal in Python."""
    return type(value), value
