"""Uncertainty of a mean over test items."""

from statistics import NormalDist

import numpy as np

from sharelock_ray.config import Config

_RESAMPLES = 2000
_Z = NormalDist().inv_cdf(0.975)


class Estimate(Config):
    """A mean over test items with its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """Share of `hits`, (N,) bool, with Wilson's score interval (JASA 22, 1927, 209-212), which lies within 0 and 1.

    Args:
        groups: (N,) integers from 0: the group of each item, where items were not drawn on their own, such as the
            image of each caption. Groups are then what is taken to be drawn. The interval is that of p(1 - p) / v
            independent items, of which v is the linearised variance of the share between groups: the effective sample
            size of Korn and Graubard (Survey Methodology 24, 1998, 193-201), in Wilson's interval as in Franco et al.
            (J. Survey Statistics and Methodology 7, 2019, 334-364).

    Raises:
        ValueError: there are no items.
    """
    count = len(hits)
    if not count:
        raise ValueError("a share needs at least one item")
    p = float(np.mean(hits))
    n = float(count) if groups is None else _effective(hits, groups)
    centre, spread = p + _Z**2 / (2 * n), _Z * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
    low, high = (centre - spread) / (1 + _Z**2 / n), (centre + spread) / (1 + _Z**2 / n)
    # The bounds of none and of all are 0 and 1 but for rounding.
    return Estimate(value=p, low=0.0 if p == 0 else low, high=1.0 if p == 1 else high)


def _effective(hits: np.ndarray, groups: np.ndarray) -> float:
    """How many independent items tell as much about the share as these do; at most as many as there are."""
    sizes = np.bincount(groups)
    found = np.bincount(groups, weights=hits)
    # Whole numbers, so that groups which do not differ at all have a variance of exactly 0.
    deviations = found * len(hits) - found.sum() * sizes
    variance = float((deviations**2).sum()) / len(hits) ** 4
    p = float(np.mean(hits))
    # Without a difference between groups, as where all hit, they are all that is known to be independent.
    return min(float(len(hits)), p * (1 - p) / variance) if variance else float(np.count_nonzero(sizes))


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of `values`, (N,) numbers of any kind, with the percentile bootstrap over them; shares have `share`.

    Raises:
        ValueError: there are no items.
    """
    if not len(values):
        raise ValueError("an estimate needs at least one item")
    generator = np.random.default_rng(seed)
    # How often each distinct value comes in a resample is all that its mean depends on.
    distinct, counts = np.unique(values, return_counts=True)
    draws = generator.multinomial(len(values), counts / len(values), size=_RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    return Estimate(value=float(np.mean(values)), low=float(low), high=float(high))
