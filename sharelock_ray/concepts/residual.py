"""Residual leakage: how the accuracy on unseen classes depends on their distance to the nearest seen concept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import Estimate, estimate, percentiles

Distance = Literal["steps", "names", "prototypes"]
_Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(R,) values from (R, C) weights of classes and two numbers of each."""
_RESAMPLES = 2000
_DRAWN = 1 << 22
"""Largest number of counts that are drawn at a time."""
_MOST_DISTANCES, _GROUPS = 30, 5
"""With more distances, classes are shown in so many groups."""
_FAR = 0.9
_ITERATIONS, _CLOSE, _LONGEST, _SATURATED, _PENALTY = 50, 1e-8, 4.0, 30.0, 1e-3


class AtDistance(Config):
    """Mean accuracy of the classes at one distance, or of those near it."""

    distance: float
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
        distance: `steps` in WordNet, or 1 - similarity of `names` or class `prototypes`, to the nearest seen concept.
        images: number of images, which weigh the classes in the fit and in `mean`; None: all classes are equal.
        log_odds: change of the log odds of a right answer per unit of distance, by logistic regression; None as
            `per_step`, and in documents of version 1, as the fields below.
        mean: accuracy of all these classes.
        far: nine in ten classes are at most this far.
        at_far: accuracy there, by the logistic fit.
        explained: share of the accuracy above chance that nearness explains, (mean - at_far) / (mean - chance).
        statement: these numbers as plain sentences.
    """

    by_distance: tuple[AtDistance, ...]
    per_step: Estimate | None
    excess: Estimate | None
    classes: int
    left_out: int
    distance: Distance = "steps"
    images: int | None = None
    chance: float = 0.0
    log_odds: Estimate | None = None
    mean: Estimate | None = None
    far: float | None = None
    at_far: Estimate | None = None
    explained: Estimate | None = None
    statement: str = ""


def residual(
    names: Sequence[Sequence[str]],
    distances: Sequence[float | None],
    related: Sequence[bool],
    accuracy: Mapping[str, float],
    seed: int = 0,
    images: Mapping[str, int] | None = None,
    distance: Distance = "steps",
    chance: float = 0.0,
) -> Residual:
    """Estimates residual leakage.

    Args:
        names: of each class, under any of which it may be in `accuracy`.
        distances: to the nearest seen concept.
        related: whether there is evidence against the class.
        accuracy: fraction of right answers by class, from 0 to 1.
        images: number of answers by class, with the keys of `accuracy`.
        distance: what `distances` are.
        chance: accuracy of a random answer.

    Raises:
        RequestError: fewer than two classes have an accuracy and a distance.
    """
    rows = []
    for of, at, leaks in zip(names, distances, related, strict=True):
        name = next((name for name in of if name in accuracy), None)
        if name is not None and at is not None:
            rows.append((at, accuracy[name], leaks, 1 if images is None else images[name]))
    if len(rows) < 2:
        raise RequestError(
            f"{len(rows):,} of {len(names):,} unseen classes have an accuracy and a distance, and two are needed: name "
            "the classes as the audit does"
        )
    x, y, leaky, n = (np.array(column) for column in zip(*sorted(rows), strict=True))
    found = Residual(
        by_distance=tuple(_by_distance(x, y, seed)),
        per_step=_interval(_slope, seed, x, y) if x[0] < x[-1] else None,
        excess=_interval(_excess, seed, leaky, y) if 0 < leaky.sum() < len(y) else None,
        classes=len(y),
        left_out=len(names) - len(y),
        distance=distance,
        images=None if images is None else int(n.sum()),
        chance=chance,
    )
    return found.model_copy(update=_fitted(found, x, y, n.astype(float), seed))


def _by_distance(x: np.ndarray, y: np.ndarray, seed: int) -> Iterator[AtDistance]:
    """Accuracy at each distance; at a few, of equally many classes, where there are many. `x` is sorted."""
    groups = np.split(np.arange(len(x)), np.flatnonzero(np.diff(x)) + 1)
    if len(groups) > _MOST_DISTANCES:
        groups = np.array_split(np.arange(len(x)), _GROUPS)
    for rows in groups:
        yield AtDistance(distance=round(float(x[rows].mean()), 4), classes=len(rows), accuracy=estimate(y[rows], seed))


def _fitted(found: Residual, x: np.ndarray, y: np.ndarray, n: np.ndarray, seed: int) -> dict[str, Any]:
    """The fields of a logistic fit."""
    if x[0] == x[-1]:
        return {}
    far = float(np.quantile(x, _FAR, method="higher"))

    def at_far(weights: np.ndarray) -> np.ndarray:
        """(4, R) change of the log odds, mean, accuracy at `far`, and explained share."""
        slope, fitted = _logistic(weights * n, x, y, far)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weights * n) @ y / (weights @ n)
            above = np.where(mean > found.chance, mean - found.chance, np.nan)
            return np.stack([slope, mean, fitted, (mean - fitted) / above])

    values = at_far(np.ones((1, len(x))))[:, 0]
    drawn = np.concatenate([at_far(weights) for weights in _weights(len(x), seed)], 1)
    slope, mean, fitted, share = (
        percentiles(float(value), of[np.isfinite(of)]) if np.isfinite(value) else None
        for value, of in zip(values, drawn, strict=True)
    )
    made = {"log_odds": slope, "mean": mean, "far": far, "at_far": fitted, "explained": share}
    return made | {"statement": _statement(found.model_copy(update=made))}


def _statement(found: Residual) -> str:
    if not found.log_odds or not found.mean or not found.at_far:
        return ""
    far = f"{found.far:g} steps" if found.distance == "steps" else f"{found.far:.3f} by {found.distance}"
    first = (
        f"The accuracy on {found.classes:,} unseen classes is {found.mean.value:.1%}; at a distance of {far} from the "
        f"nearest seen concept, the fit gives {_percent(found.at_far)}."
    )
    if found.log_odds.high >= 0:
        if found.log_odds.low > 0:
            return f"{first} Nearer classes do worse."
        return f"{first} It is not shown that accuracy depends on distance: the interval of the slope has 0."
    of = f": nearness explains {_percent(found.explained)} of the accuracy above chance" if found.explained else ""
    return f"{first} Nearer classes do better{of}. This bounds leakage, and does not prove it."


def _percent(of: Estimate) -> str:
    return f"{of.value:.1%} [{of.low:.1%}, {of.high:.1%}]"


def _logistic(weights: np.ndarray, x: np.ndarray, y: np.ndarray, far: float) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression of accuracy on distance, by Newton's method, for many weights at once.

    Args:
        weights: (R, C) number of answers of each class.
        x: (C,) sorted distances.
        y: (C,) fractions of right answers.

    Returns:
        (R,) changes of the log odds per unit of distance, and accuracies at `far`. NaN with fewer than two distances.
    """
    # Only the sums at each distance matter.
    starts = np.concatenate([[0], np.flatnonzero(np.diff(x)) + 1])
    total, right = (np.add.reduceat(of, starts, axis=1) for of in (weights, weights * y))
    centre, scale = x.mean(), x.std()
    z = (x[starts] - centre) / scale
    constant, slope = np.zeros((2, len(weights), 1))
    for _ in range(_ITERATIONS):
        p = _sigmoid(constant + slope * z)
        gap, spread = right - total * p, total * p * (1 - p)
        # The penalty keeps the slope finite where distance separates right from wrong answers.
        gradient = [gap.sum(1), (gap * z).sum(1) - _PENALTY * slope[:, 0]]
        a, b, c = spread.sum(1) + _PENALTY, (spread * z).sum(1), (spread * z * z).sum(1) + _PENALTY
        determinant = a * c - b * b
        steps = (
            (c * gradient[0] - b * gradient[1]) / determinant,
            (a * gradient[1] - b * gradient[0]) / determinant,
        )
        constant, slope = (
            of + np.clip(step, -_LONGEST, _LONGEST)[:, None] for of, step in zip((constant, slope), steps, strict=True)
        )
        if max(np.abs(step).max() for step in steps) < _CLOSE:
            break
    known = (total > 0).sum(1) > 1
    fitted = _sigmoid(constant + slope * (far - centre) / scale)[:, 0]
    return np.where(known, slope[:, 0] / scale, np.nan), np.where(known, fitted, np.nan)


def _sigmoid(of: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(of, -_SATURATED, _SATURATED)))
    return found


def points(of: Estimate) -> str:
    """A difference of accuracies with its interval, in percentage points."""
    return f"{100 * of.value:+.1f} points [{100 * of.low:+.1f}, {100 * of.high:+.1f}]"


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
