"""Correlation of two scores over models, such as a visual and a language score, and what so few models can show.

Models are the sampling unit, or families of models, since those of one family have their data and recipe in common.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from scipy import optimize, stats

from sharelock_ray.config import Config

Kind = Literal["pearson", "spearman", "kendall"]
Bounds = tuple[float, float]
"""95 % interval."""

_RESAMPLES = 10_000
_PERMUTATIONS = 100_000
"""All pairings are tried if there are no more: up to eight models."""
_AT_ONCE = 1_000
FEWEST = 4
"""Fewest models of a correlation: its interval by Fisher has n - 3 degrees of freedom."""
_FEWEST_RESAMPLED = 5
"""Fewest models or families that are resampled: of fewer, many resamples hold one unit only."""
_EXACT_KENDALL = 33
"""Most models for which scipy counts all orders."""
_Z = float(stats.norm.ppf(0.975))
_ROUNDING = 1e-12
"""Largest share of a spread that is rounding."""


class Coefficient(Config):
    """A correlation coefficient."""

    value: float
    by_models: Bounds | None
    """BCa bootstrap over models; None with fewer than five."""
    by_families: Bounds | None
    """BCa bootstrap over families, each with all its models; None with fewer than five families."""
    p: float
    """Two-sided p-value of the hypothesis that the scores are independent, over permutations of the models."""
    exact: bool
    """Whether p counts all permutations, not a random part."""


class Partial(Config):
    """A correlation of what other variables do not explain."""

    models: int
    value: float
    low: float
    high: float
    """Interval by Fisher's transformation."""
    p: float


class Measurement(Config):
    """The effect of the errors of both scores on their correlation."""

    again: Bounds
    """Where the correlation would be if the same models were measured again."""
    reliability_x: float
    """Share of the variance over models that is not error."""
    reliability_y: float
    corrected: float | None
    """The correlation without errors by Spearman's correction (1904); None if errors explain all variance."""


class Prediction(Config):
    """A predicted score with the interval of one new model."""

    value: float
    low: float
    high: float
    extrapolates: bool
    """Whether the language score is outside those of the fit."""


class Line(Config):
    """A least-squares line y = intercept + slope x."""

    intercept: float
    slope: float
    models: int
    residual: float
    """Standard deviation of the residuals, s."""
    mean: float
    """Mean of x."""
    squares: float
    """Sum of squared deviations of x from its mean."""
    least: float
    most: float
    left_out: float
    """Root mean square error of predicting each model by the line of the others."""
    left_out_mean: float
    """The same by the mean of the others, without x."""

    def predict(self, x: float) -> Prediction:
        """y ± t(0.975, n - 2) s sqrt(1 + 1/n + (x - mean)² / squares), for a new model."""
        return self._at(x, 1.0)

    def band(self, x: float) -> Prediction:
        """The mean over models of this x, with its interval: as for a new model, without the 1."""
        return self._at(x, 0.0)

    def _at(self, x: float, own: float) -> Prediction:
        value = self.intercept + self.slope * x
        spread = math.sqrt(own + 1 / self.models + (x - self.mean) ** 2 / self.squares)
        half = float(stats.t.ppf(0.975, self.models - 2)) * self.residual * spread
        outside = not self.least <= x <= self.most
        return Prediction(value=value, low=value - half, high=value + half, extrapolates=outside)


class Difference(Config):
    """Comparison of two correlations with the same score over the same models."""

    models: int
    t: float
    p: float


def coefficient(kind: Kind, x: np.ndarray, y: np.ndarray, families: Sequence[str], seed: int = 0) -> Coefficient:
    """A correlation coefficient with its intervals and its p-value.

    The intervals are bias-corrected and accelerated bootstraps (Efron, JASA 82, 1987, 171-185). A resample in which a
    score is constant has no correlation and counts as 0. Kendall's coefficient is tau-b, and its p-value scipy's.

    Args:
        x, y: (n,) scores, neither of them constant.
        families: (n) names.
    """
    of = partial(_KINDS[kind], x, y)
    if kind == "kendall":
        p = float(stats.kendalltau(x, y).pvalue)
        exact = max(map(_ties, (x, y))) == 1 and len(x) <= _EXACT_KENDALL
    else:
        first, second = (stats.rankdata(each) if kind == "spearman" else each for each in (x, y))
        p = _permutation(first, second, seed)
        exact = math.factorial(len(x)) <= _PERMUTATIONS
    return Coefficient(
        value=float(of(np.ones(len(x)))),
        by_models=_bca(of, np.arange(len(x)), seed),
        by_families=_bca(of, np.unique(list(families), return_inverse=True)[1], seed),
        p=p,
        exact=exact,
    )


def without_each(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Pearson's coefficient without each model or family, by its name.

    Groups are left out whose absence leaves fewer than three models, or a constant score.

    Args:
        x, y: (n,) scores.
        groups: (n) names, of the models or their families.
    """
    found = {}
    for group in dict.fromkeys(groups):
        kept = np.array([each != group for each in groups])
        if kept.sum() > 2 and not is_constant(x[kept]) and not is_constant(y[kept]):
            found[group] = _plain(x[kept], y[kept])
    return found


def fisher_interval(r: float, models: int) -> Bounds:
    """The interval of a coefficient of binormal scores: tanh(atanh r ± 1.96 / sqrt(n - 3)), for more than 3 models."""
    if abs(r) >= 1:
        return r, r
    half = _Z / math.sqrt(models - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def critical_correlation(models: int) -> float:
    """The smallest |r| of so many models that is significant at 5 %: t / sqrt(n - 2 + t²)."""
    t = float(stats.t.ppf(0.975, models - 2))
    return t / math.sqrt(models - 2 + t**2)


def power(r: float, models: int) -> float:
    """The probability that so many models of a population with correlation r give a significant one, at 5 %.

    Fisher's approximation with the correction of its bias (Cohen, Statistical Power Analysis, 1988, 12.6).
    """
    centre, critical = math.atanh(r) + r / (2 * (models - 1)), math.atanh(critical_correlation(models))
    root = math.sqrt(models - 3)
    return float(stats.norm.cdf((centre - critical) * root) + stats.norm.cdf((-centre - critical) * root))


def detectable_correlation(models: int, wanted: float = 0.8) -> float:
    """The smallest |r| of a population that so many models show with the power `wanted`."""
    return float(optimize.brentq(lambda r: power(r, models) - wanted, 0, 1 - 1e-12))


def partial_correlation(x: np.ndarray, y: np.ndarray, controls: np.ndarray) -> Partial | None:
    """Pearson's coefficient of the residuals of x and y given other variables, with n - k - 2 degrees of freedom.

    Args:
        x, y: (n,) scores.
        controls: (n, k) other variables, such as the logarithm of the number of parameters.

    Returns:
        None if the models are too few, or the variables explain a score.
    """
    design = np.column_stack([np.ones(len(x)), controls])
    freedom = len(x) - int(np.linalg.matrix_rank(design)) - 1
    if freedom < 2:
        return None
    of_x, of_y = (each - design @ np.linalg.lstsq(design, each)[0] for each in (x, y))
    if any(rest.var() <= _ROUNDING * each.var() for rest, each in ((of_x, x), (of_y, y))):
        return None
    r = _plain(of_x, of_y)
    # Each control costs one model.
    low, high = fisher_interval(r, freedom + 2)
    t = r * math.sqrt(freedom / max(1 - r**2, _ROUNDING))
    return Partial(models=len(x), value=r, low=low, high=high, p=float(2 * stats.t.sf(abs(t), freedom)))


def within_families(x: np.ndarray, y: np.ndarray, families: Sequence[str]) -> Partial | None:
    """The correlation within families: the partial one given the family.

    Families of one model say nothing and are left out. None if the rest are too few.
    """
    kept = np.array([list(families).count(family) > 1 for family in families])
    names = [family for family, keep in zip(families, kept, strict=True) if keep]
    if not names:
        return None
    is_of = np.array([[name == each for each in sorted(set(names))] for name in names], np.float64)
    return partial_correlation(x[kept], y[kept], is_of[:, 1:])


def measurement(x: np.ndarray, y: np.ndarray, x_error: np.ndarray, y_error: np.ndarray, seed: int = 0) -> Measurement:
    """Propagates the errors of both scores to their correlation.

    Errors are drawn from independent normal distributions. They are part of what a bootstrap over models resamples, so
    its interval need not be widened by them.

    Args:
        x, y: (n,) scores.
        x_error, y_error: (n,) standard errors; 0 if unknown.
    """
    generator = np.random.default_rng(seed)

    def again(score: np.ndarray, error: np.ndarray) -> np.ndarray:
        return score + error * generator.standard_normal((_RESAMPLES, len(score)))

    def reliability(score: np.ndarray, error: np.ndarray) -> float:
        return max(0.0, 1 - float((error**2).mean() / score.var(ddof=1)))

    low, high = np.quantile(_pearson(again(x, x_error), again(y, y_error), np.ones(len(x))), [0.025, 0.975])
    of_x, of_y = reliability(x, x_error), reliability(y, y_error)
    return Measurement(
        again=(float(low), float(high)),
        reliability_x=of_x,
        reliability_y=of_y,
        corrected=float(np.clip(_plain(x, y) / math.sqrt(of_x * of_y), -1, 1)) if of_x and of_y else None,
    )


def fit_line(x: np.ndarray, y: np.ndarray) -> Line:
    """The least-squares line of (n,) scores, n > 2, of which x is not constant."""
    fit = stats.linregress(x, y)
    rest = y - fit.intercept - fit.slope * x
    squares = (x - x.mean()) ** 2
    leverage = 1 / len(x) + squares / squares.sum()
    return Line(
        intercept=float(fit.intercept),
        slope=float(fit.slope),
        models=len(x),
        residual=math.sqrt(float((rest**2).sum()) / (len(x) - 2)),
        mean=float(x.mean()),
        squares=float(squares.sum()),
        least=float(x.min()),
        most=float(x.max()),
        left_out=_root_mean_square(rest / np.maximum(1 - leverage, _ROUNDING)),
        left_out_mean=_root_mean_square((y - y.mean()) * len(x) / (len(x) - 1)),
    )


def compare_correlations(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> Difference | None:
    """Whether y correlates with `first` otherwise than with `second`: the test of Williams.

    It has n - 3 degrees of freedom, and is the one that Steiger recommends (Psychological Bulletin 87, 1980, 245-251,
    equation 7). With scores of opposite directions, pass one negated.

    Args:
        y, first, second: (n,) scores of the same models.

    Returns:
        None with fewer than four models or a constant score, or if both scores are the same up to scale.
    """
    n = len(y)
    if n < FEWEST or any(map(is_constant, (y, first, second))):
        return None
    one, other, between = _plain(y, first), _plain(y, second), _plain(first, second)
    determinant = 1 - one**2 - other**2 - between**2 + 2 * one * other * between
    scale = 2 * (n - 1) / (n - 3) * determinant + (one + other) ** 2 / 4 * (1 - between) ** 3
    if scale <= _ROUNDING:
        return None
    t = (one - other) * math.sqrt((n - 1) * (1 + between) / scale)
    return Difference(models=n, t=t, p=float(2 * stats.t.sf(abs(t), n - 3)))


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(…) coefficients of (…, n) scores, of which each counts as often as its weight says; 0 if one is constant."""
    total = weights.sum(-1, keepdims=True)
    x, y = (each - (weights * each).sum(-1, keepdims=True) / total for each in (x, y))
    products = (weights * x * y).sum(-1)
    scale = np.sqrt((weights * x * x).sum(-1) * (weights * y * y).sum(-1))
    return np.clip(_ratio(products, scale), -1, 1)


def _plain(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's coefficient of (n,) scores."""
    return float(_pearson(x, y, np.ones(len(x))))


def _spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `_pearson`, of the mean ranks."""

    def ranks(score: np.ndarray) -> np.ndarray:
        below, equal = score[:, None] < score, score[:, None] == score
        return weights @ below + (weights @ equal + 1) / 2

    return _pearson(ranks(x), ranks(y), weights)


def _kendall(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `_pearson`, from the signs of all differences."""
    x, y = (np.sign(each[:, None] - each) for each in (x, y))
    products, of_x, of_y = ((weights @ signs * weights).sum(-1) for signs in (x * y, x * x, y * y))
    return _ratio(products, np.sqrt(of_x * of_y))


_KINDS: dict[Kind, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "kendall": _kendall,
}


def _ratio(products: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)


def _bca(of: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, seed: int) -> Bounds | None:
    """Interval of a function of the models' weights, over resampled groups; None if they are too few, or all alike.

    Args:
        groups: (n,) integers from 0.
    """
    count = int(groups.max()) + 1
    if count < _FEWEST_RESAMPLED:
        return None

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        counts = (drawn[..., None] == np.arange(count)).sum(-2)
        return of(counts[..., groups].astype(np.float64))

    with warnings.catch_warnings():
        # If the correlation is the same in all resamples, such as 1, the interval is not a number.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=_RESAMPLES,
            batch=_AT_ONCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _permutation(x: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Two-sided p-value of Pearson's coefficient over all pairings, or a random part of them."""
    found = stats.permutation_test(
        (x,),
        lambda x, axis: _pearson(x, y, np.ones(len(y))),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _root_mean_square(errors: np.ndarray) -> float:
    return math.sqrt(float((errors**2).mean()))


def is_constant(scores: np.ndarray) -> bool:
    """Whether (n,) scores are equal up to rounding."""
    return float(np.ptp(scores)) <= _ROUNDING * float(np.abs(scores).max())


def _ties(scores: np.ndarray) -> int:
    """The largest number of equal scores."""
    return int(np.unique(scores, return_counts=True)[1].max())
