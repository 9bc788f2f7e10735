"""Confidence intervals of means over test items."""

from statistics import NormalDist

import numpy as np

from sharelock_ray.config import Config

_RESAMPLES = 2000
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


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean with its percentile bootstrap interval. Use `proportion` for proportions.

    Args:
        values: (N,) numbers.

    Raises:
        ValueError: there are no items.
    """
    if not len(values):
        raise ValueError("an estimate needs at least one item")
    generator = np.random.default_rng(seed)
    # A resample's mean depends only on how often it holds each distinct value.
    distinct, counts = np.unique(values, return_counts=True)
    draws = generator.multinomial(len(values), counts / len(values), size=_RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    return Estimate(value=float(np.mean(values)), low=float(low), high=float(high))
