"""Uncertainty of a mean over test items."""

import numpy as np

from sharelock_ray.config import Config

_RESAMPLES = 2000


class Estimate(Config):
    """A mean over test items with its 95 % interval (percentile bootstrap over the items)."""

    value: float
    low: float
    high: float


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean and interval of `values`, (N,): one number for each test item, such as 1 for correct and 0 for wrong.

    Raises:
        ValueError: there are no items.
    """
    if not len(values):
        raise ValueError("an estimate needs at least one item")
    generator = np.random.default_rng(seed)
    # How often each distinct value comes in a resample is all that its mean depends on; accuracies have two.
    distinct, counts = np.unique(values, return_counts=True)
    draws = generator.multinomial(len(values), counts / len(values), size=_RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    return Estimate(value=float(np.mean(values)), low=float(low), high=float(high))
