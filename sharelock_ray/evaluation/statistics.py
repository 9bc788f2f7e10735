"""Confidence intervals of means over test items, and comparisons of two models on the same items."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from sharelock_ray.config import Config

_RESAMPLES = 2000
_DRAWN = 1 << 24
"""Largest number of counts that are drawn at a time: 128 MiB."""
_Z = NormalDist().inv_cdf(0.975)


class Estimate(Config):
    """A mean over test items with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def proportion(hits: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """Proportion of true values with its Wilson score interval (JASA 22, 1927, 209-212), which lies within 0 and 1.

    Args:
        hits: (N,) bool.
        groups: (N,) integers from 0, for items that are not independent, such as the image of each caption. The
            sampling unit is then the group: the interval is that of p(1 - p) / v independent items, where v is the
            linearised variance of the proportion between groups. This is the effective sample size of Korn and
            Graubard (Survey Methodology 24, 1998, 193-201), used in Wilson's interval as by Franco et al. (J. Survey
            Statistics and Methodology 7, 2019, 334-364).

    Raises:
        ValueError: there are no items.
    """
    count = len(hits)
    if not count:
        raise ValueError("a proportion needs at least one item")
    p = float(np.mean(hits))
    n = float(count) if groups is None else _effective(hits, groups)
    centre, spread = p + _Z**2 / (2 * n), _Z * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
    low, high = (centre - spread) / (1 + _Z**2 / n), (centre + spread) / (1 + _Z**2 / n)
    # Exact bounds, without rounding errors.
    return Estimate(value=p, low=0.0 if p == 0 else low, high=1.0 if p == 1 else high)


def _effective(hits: np.ndarray, groups: np.ndarray) -> float:
    """Effective sample size: the number of independent items with the same variance, at most N."""
    sizes = np.bincount(groups)
    found = np.bincount(groups, weights=hits)
    # Integer arithmetic: groups that do not differ have a variance of exactly 0.
    deviations = found * len(hits) - found.sum() * sizes
    variance = float((deviations**2).sum()) / len(hits) ** 4
    p = float(np.mean(hits))
    # Without variance between groups, such as when all items hit, only the groups are known to be independent.
    return min(float(len(hits)), p * (1 - p) / variance) if variance else float(np.count_nonzero(sizes))


def estimate(values: np.ndarray, seed: int = 0, groups: np.ndarray | None = None) -> Estimate:
    """Mean with its percentile bootstrap interval. Use `proportion` for proportions.

    Args:
        values: (N,) numbers.
        groups: (N,) integers from 0, such as the image of each caption. Groups are then resampled in place of items,
            each with all its items (Davison and Hinkley, Bootstrap Methods, 1997, 3.8).

    Raises:
        ValueError: there are no items.
    """
    if not len(values):
        raise ValueError("an estimate needs at least one item")
    return percentiles(float(np.mean(values)), _bootstrap(values, seed, groups))


def class_mean(values: np.ndarray, classes: np.ndarray, seed: int = 0) -> Estimate:
    """Mean over classes of the proportion in each, with its percentile bootstrap interval.

    The items of each class are resampled within it, since a benchmark fixes their number: the hits of a class are
    binomial draws. A class whose items are all alike adds no width.

    Args:
        values: (N,) bool.
        classes: (N,) integers from 0.

    Raises:
        ValueError: there are no items.
    """
    if not len(values):
        raise ValueError("a mean over classes needs at least one item")
    counts = np.bincount(classes)
    present = np.flatnonzero(counts)
    counts = counts[present]
    hits = np.bincount(classes, weights=values)[present]
    # The hits of all classes with equal counts are one binomial draw.
    (sizes, right), alike = np.unique(np.stack([counts, hits]), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = [
        generator.binomial((alike * sizes).astype(np.int64), right / sizes, (part, len(sizes))) @ (1 / sizes)
        for part in _parts(len(sizes))
    ]
    return percentiles(float((hits / counts).mean()), np.concatenate(drawn) / len(counts))


class Comparison(Config):
    """Difference of two models on the same items."""

    items: int
    difference: Estimate
    """Mean of the second model minus that of the first, with its paired bootstrap interval."""
    p_bootstrap: float
    """Two-sided p-value of the paired bootstrap."""
    first_only: int
    """Number of items for which the first model has the higher value."""
    second_only: int
    p_mcnemar: float | None
    """Two-sided p-value of McNemar's exact test. None if values are not true or false, or items are not independent."""

    @property
    def p(self) -> float:
        """That of the exact test where there is one, and of the bootstrap elsewhere."""
        return self.p_bootstrap if self.p_mcnemar is None else self.p_mcnemar


def compare(first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> Comparison:
    """Compares two models by their values on the same items.

    The paired bootstrap resamples the differences; its p-value is the share of resamples whose mean, moved to 0, is at
    least as far from 0 as the observed one, with 1 added to both counts (Davison and Hinkley, 1997, 4.4). McNemar's
    exact test (Psychometrika 12, 1947, 153-157) is the two-sided binomial test of the items on which only one is right.

    Args:
        first: (N,) bool or numbers, such as hits.
        second: (N,) of the same kind and items.
        groups: see `estimate`.

    Raises:
        ValueError: there are no items, or the models have different numbers of them.
    """
    # Stored results are read by commands that start faster without it.
    from scipy.stats import binomtest

    if len(first) != len(second) or not len(first):
        raise ValueError(f"a comparison needs the same items of both models, at least one: {len(first)}, {len(second)}")
    differences = second.astype(np.float64) - first.astype(np.float64)
    value = float(differences.mean())
    means = _bootstrap(differences, seed, groups)
    less, more = int(np.count_nonzero(differences < 0)), int(np.count_nonzero(differences > 0))
    exact = first.dtype == second.dtype == np.bool_ and groups is None
    return Comparison(
        items=len(first),
        difference=percentiles(value, means),
        p_bootstrap=bootstrap_p(value, means),
        first_only=less,
        second_only=more,
        p_mcnemar=(float(binomtest(less, less + more).pvalue) if less + more else 1.0) if exact else None,
    )


def bootstrap_p(value: float, resampled: np.ndarray) -> float:
    """Two-sided p-value of a difference from 0, with its bootstrap replicates, (R,): see `compare`."""
    # Equal up to the rounding of the sums is at least as far.
    further = int(np.count_nonzero(np.abs(resampled - value) >= abs(value) - 1e-12))
    return (further + 1) / (len(resampled) + 1)


def holm(found: Sequence[float]) -> list[float]:
    """p-values with Holm's correction (Scandinavian Journal of Statistics 6:65, 1979)."""
    adjusted = [0.0] * len(found)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted((p, i) for i, p in enumerate(found))):
        largest = max(largest, min(1.0, p * (len(found) - rank)))
        adjusted[i] = largest
    return adjusted


def percentiles(value: float, resampled: np.ndarray) -> Estimate:
    """`value` with the percentile interval of its bootstrap replicates, (R,)."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))


def _bootstrap(values: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """(_RESAMPLES,) means of resampled items, or of all items of resampled groups."""
    sizes = np.ones(len(values), np.int64) if groups is None else np.bincount(groups)
    sums = values if groups is None else np.bincount(groups, weights=values)
    # A resample's mean depends only on how often it holds each distinct unit.
    units, counts = np.unique(np.stack([sums, sizes], 1)[sizes > 0], axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    means = []
    for part in _parts(len(units)):
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=part)
        means.append(draws @ units[:, 0] / (draws @ units[:, 1]))
    return np.concatenate(means)


def _parts(width: int) -> list[int]:
    """Numbers of resamples, in all `_RESAMPLES`, whose `width` counts each are drawn at a time."""
    most = max(1, _DRAWN // width)
    return [min(most, _RESAMPLES - start) for start in range(0, _RESAMPLES, most)]
