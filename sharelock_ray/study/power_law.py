"""A power law of a score by the size of the training data, with intervals."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize

from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import Estimate, percentiles

_RESAMPLES = 2000
_EXPONENTS = np.geomspace(0.01, 5, 1500)
"""Exponents that are tried, each 0.4 % above the last. A smaller one is a logarithm, and a larger one a step."""
_PARAMETERS = 3


class PowerLaw(Config):
    """score = limit - gain · n^(-exponent), with 95 % intervals. For an error, which falls, `gain` is negative."""

    limit: Estimate
    """The score of unlimited data."""
    gain: Estimate
    exponent: Estimate
    residual: float
    """Standard deviation of the residuals."""
    bends: bool
    """Whether the exponent's interval excludes the smallest that is tried: if not, the curve has not begun to saturate,
    and its limit is unknown."""
    sizes: tuple[float, ...]
    curve: tuple[Estimate, ...]
    """The fitted score at each of `sizes`, with the interval of the curve, not of a new training."""


def fit_power_law(sizes: Sequence[float], scores: Sequence[float], at: Sequence[float] = (), seed: int = 0) -> PowerLaw:
    """Least-squares fit of a power law, as of Hestness et al. (arXiv 1712.00409) with a limit.

    Given the exponent, the rest is linear, so only the exponent is searched. The intervals are percentiles over
    resampled residuals, which are widened by sqrt(N / (N - 3)) for the fit of three parameters (Davison and Hinkley,
    Bootstrap Methods, 1997, 6.2): the scores of all seeds and sizes count as equally uncertain.

    Args:
        sizes: (N) numbers of training pairs; a size has as many scores as seeds.
        scores: (N) scores.
        at: sizes at which the curve is wanted; () for those of the fit.

    Raises:
        RequestError: there are fewer than four sizes, a size is not positive, or the scores are all equal.
    """
    n, y = np.array(sizes, np.float64), np.array(scores, np.float64)
    different = np.unique(n)
    if n.shape != y.shape or not np.isfinite([n, y]).all() or (n <= 0).any():
        raise RequestError("a power law needs one finite score for each size, and sizes above 0")
    if len(different) <= _PARAMETERS:
        raise RequestError(
            f"a power law has three parameters: give scores of at least four sizes, not {len(different)}"
        )
    if np.ptp(y) == 0:
        raise RequestError(f"a power law needs scores that differ: all {len(y)} are {y[0]:g}")
    # Sizes relative to the smallest keep the powers near 1.
    least = different[0]
    bases = _bases(n / least)
    exponents, parameters = _fit(bases, n / least, y[None])
    fitted = _curves(exponents, parameters, n / least)[0]
    residuals = y - fitted
    widened = (residuals - residuals.mean()) * np.sqrt(len(y) / (len(y) - _PARAMETERS))
    drawn = np.random.default_rng(seed).choice(widened, (_RESAMPLES, len(y)))
    found, linear = _fit(bases, n / least, fitted + drawn)
    wanted = np.array(at or different, np.float64)
    one, many = (_curves(*each, wanted / least) for each in ((exponents, parameters), (found, linear)))
    exponent = percentiles(float(exponents[0]), found)
    return PowerLaw(
        limit=percentiles(float(parameters[0, 0]), linear[:, 0]),
        gain=percentiles(float(parameters[0, 1] * least ** exponents[0]), linear[:, 1] * least**found),
        exponent=exponent,
        residual=float(np.sqrt((residuals**2).sum() / max(1, len(y) - _PARAMETERS))),
        bends=exponent.low > _EXPONENTS[0],
        sizes=tuple(wanted.tolist()),
        curve=tuple(percentiles(float(value), each) for value, each in zip(one[0], many.T, strict=True)),
    )


def _design(n: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(E, N, 2) coefficients of limit and gain."""
    powers = n ** -exponents[:, None]
    return np.stack([np.ones_like(powers), -powers], -1)


def _bases(n: np.ndarray) -> np.ndarray:
    """(E, N, 2) orthonormal bases of the curves of each exponent that is tried."""
    return np.linalg.qr(_design(n, _EXPONENTS))[0]


def _fit(bases: np.ndarray, n: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponents (R,), and limits and gains (R, 2), of (R, N) scores."""
    # The projection on the best basis is the longest.
    explained = sum((y @ bases[..., i].T) ** 2 for i in range(2))
    exponents = _EXPONENTS[np.argmax(explained, 1)]
    if len(y) == 1:
        exponents = np.array([_refined(float(exponents[0]), n, y[0])])
    parameters = np.linalg.pinv(_design(n, exponents)) @ y[..., None]
    return exponents, parameters[..., 0]


def _refined(exponent: float, n: np.ndarray, y: np.ndarray) -> float:
    """The best exponent between the neighbours of one that was tried."""

    def missed(exponent: float) -> float:
        design = _design(n, np.array([exponent]))[0]
        return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())

    step = _EXPONENTS[1] / _EXPONENTS[0]
    bounds = max(_EXPONENTS[0], exponent / step), min(_EXPONENTS[-1], exponent * step)
    return float(optimize.minimize_scalar(missed, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)


def _curves(exponents: np.ndarray, parameters: np.ndarray, n: np.ndarray) -> np.ndarray:
    """(R, N) scores."""
    return (_design(n, exponents) @ parameters[..., None])[..., 0]
