"""Residual leakage: how the accuracy on unseen classes depends on their distance to the nearest seen concept."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import Estimate, estimate, percentiles

_Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(R,) values from (R, C) weights of classes and two numbers of each."""
_RESAMPLES = 2000
_DRAWN = 1 << 22
"""Largest number of counts that are drawn at a time."""


class AtDistance(Config):
    """Mean accuracy of the classes at one distance."""

    distance: int
    classes: int
    accuracy: Estimate


class Residual(Config):
    """What the rules may have missed, as seen in accuracies. Intervals resample classes.

    Args:
        per_step: slope of accuracy by distance, by least squares. A negative one says that classes nearer to the seen
            ones do better. That is leakage, or that near classes are easier for another reason: it bounds leakage, and
            does not prove it. None if all classes have one distance.
        excess: mean accuracy of classes with evidence minus that of the others; None if there are none of either.
        classes: that have both an accuracy and a distance.
        left_out: classes of the audit without one of them.
    """

    by_distance: tuple[AtDistance, ...]
    per_step: Estimate | None
    excess: Estimate | None
    classes: int
    left_out: int


def residual(
    names: Sequence[Sequence[str]],
    distances: Sequence[int | None],
    related: Sequence[bool],
    accuracy: Mapping[str, float],
    seed: int = 0,
) -> Residual:
    """Estimates residual leakage.

    Args:
        names: of each class, under any of which it may be in `accuracy`.
        distances: steps to the nearest seen concept.
        related: whether there is evidence against the class.
        accuracy: fraction of right answers by class, from 0 to 1.

    Raises:
        RequestError: fewer than two classes have an accuracy and a distance.
    """
    rows = []
    for of, distance, leaks in zip(names, distances, related, strict=True):
        value = next((accuracy[name] for name in of if name in accuracy), None)
        if value is not None and distance is not None:
            rows.append((distance, value, leaks))
    if len(rows) < 2:
        raise RequestError(
            f"{len(rows):,} of {len(names):,} unseen classes have an accuracy and a distance, and two are needed: name "
            "the classes as the audit does"
        )
    x, y, leaky = (np.array(column) for column in zip(*rows, strict=True))
    found = sorted(set(x.tolist()))
    return Residual(
        by_distance=tuple(
            AtDistance(distance=d, classes=int((x == d).sum()), accuracy=estimate(y[x == d], seed)) for d in found
        ),
        per_step=_interval(_slope, seed, x, y) if len(found) > 1 else None,
        excess=_interval(_excess, seed, leaky, y) if 0 < leaky.sum() < len(y) else None,
        classes=len(y),
        left_out=len(names) - len(y),
    )


def _interval(statistic: _Statistic, seed: int, x: np.ndarray, y: np.ndarray) -> Estimate:
    """A statistic of weighted classes with its percentile bootstrap interval."""
    replicates = np.concatenate([statistic(weights, x, y) for weights in _weights(len(y), seed)])
    # A resample of one distance, or of one kind of class, has no value.
    return percentiles(float(statistic(np.ones((1, len(y))), x, y)[0]), replicates[np.isfinite(replicates)])


def _weights(count: int, seed: int) -> Iterator[np.ndarray]:
    """(R, count) numbers of times that each class is drawn, in parts."""
    generator = np.random.default_rng(seed)
    most = max(1, _DRAWN // count)
    for start in range(0, _RESAMPLES, most):
        part = min(most, _RESAMPLES - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size=part).astype(np.float64)


def _slope(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    with np.errstate(invalid="ignore", divide="ignore"):
        slope: np.ndarray = (weights @ (x * y) / total - mean_x * mean_y) / (weights @ (x * x) / total - mean_x**2)
    return slope


def _excess(weights: np.ndarray, leaky: np.ndarray, y: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [weights @ (y * of) / (weights @ of.astype(float)) for of in (leaky, ~leaky)]
    difference: np.ndarray = means[0] - means[1]
    return difference
