"""Zero-shot classification of unseen classes, alone and together with seen ones (Xian et al., arXiv 1707.00600).

Accuracies are means over classes, since classes have different numbers of images. With the score f_c of class c, seen
classes S and unseen classes U,

    zero-shot: images of U, argmax over c in U of f_c;
    generalised: all images, argmax over c in S and U of f_c - gamma [c in S]    (calibrated stacking).

acc_S(gamma) and acc_U(gamma) are the generalised accuracies of the images of S and of U. Their harmonic mean is
H = 2 acc_S acc_U / (acc_S + acc_U), and AUSUC is the area under the curve of all (acc_U(gamma), acc_S(gamma)); both
penalties are those of Chao et al. (arXiv 1605.04253).

An image is right up to, or from, one value of gamma: with m_i = max over S of f_c - max over U of f_c, an image of S
whose class scores the highest in S is right while gamma < m_i, and one of U while gamma > m_i. So the curve is made of
steps at the values m_i only, and its area is exact: with w_i = 1 / (classes of its side * images of its class),

    AUSUC = sum over such images i of S and j of U of w_i w_j [m_j < m_i].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.evaluation.accuracy import distinct_names
from sharelock_ray.evaluation.ranks import TIE, blocks
from sharelock_ray.evaluation.result import CalibratedAccuracy, GeneralisedAccuracy, GeneralisedResult
from sharelock_ray.evaluation.statistics import Estimate, percentiles
from sharelock_ray.onednn import product

_RESAMPLES = 1000
_DRAWN = 1 << 23
"""Largest number of images that are drawn at a time: 64 MiB."""


@dataclass(frozen=True)
class Sides:
    """Labels of the classes of each side, (S,) and (U,). Classes of neither side are no candidates."""

    seen: np.ndarray
    unseen: np.ndarray

    def rows(self, labels: np.ndarray) -> np.ndarray:
        """Positions of the `labels`, (N,), that are on either side."""
        return np.flatnonzero(np.isin(labels, np.concatenate([self.seen, self.unseen])))


@dataclass(frozen=True)
class Decisions:
    """What the scores of N images say under every calibration.

    Args:
        labels: (N,)
        seen: (N,) bool, whether the class of the image is a seen one.
        first: (N,) bool, whether it scores higher than the others of its side, by more than `ranks.TIE`.
        limit: (N,) value of gamma below which a seen image, and above which an unseen one, is right if it is `first`.
    """

    labels: np.ndarray
    seen: np.ndarray
    first: np.ndarray
    limit: np.ndarray

    def right(self, gamma: float) -> np.ndarray:
        """(N,) bool: whether each image gets its own class among those of both sides."""
        return self.first & np.where(self.seen, gamma < self.limit, gamma > self.limit)


def decisions(image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, sides: Sides) -> Decisions:
    """Decides for images by their similarities to classes, as `decisions_of` does.

    Args:
        image: (N, D) unit vectors.
        labels: (N,) class of each image, on one of the sides.
        prototypes: (C, D) unit vectors.
    """
    parts = [decisions_of(product(image[rows], prototypes), labels[rows], sides) for rows in blocks(len(image))]
    return Decisions(*(np.concatenate([getattr(part, name) for part in parts]) for name in Decisions.__annotations__))


def decisions_of(scores: torch.Tensor, labels: np.ndarray, sides: Sides) -> Decisions:
    """Decides for images by scores, (N, C). NaN and ties with a wrong class are errors under every calibration.

    Raises:
        ValueError: the class of an image is on neither side.
    """
    of_seen = np.isin(labels, sides.seen)
    if not (of_seen | np.isin(labels, sides.unseen)).all():
        raise ValueError("an image has a class of neither side")
    own = scores[torch.arange(len(labels)), torch.from_numpy(labels)].double().numpy()
    best, others = {}, {}
    for name, classes in (("seen", sides.seen), ("unseen", sides.unseen)):
        of_side = scores[:, torch.from_numpy(classes)].double()
        best[name] = of_side.amax(1).numpy() if len(classes) else np.full(len(labels), -np.inf)
        is_own = torch.from_numpy(labels[:, None] == classes[None])
        rest = of_side.masked_fill(is_own, -torch.inf)
        others[name] = rest.amax(1).numpy() if len(classes) else np.full(len(labels), -np.inf)
    margin = best["seen"] - best["unseen"]
    # A comparison with NaN is false.
    first = (own - np.where(of_seen, others["seen"], others["unseen"]) > TIE) & ~np.isnan(margin)
    limit = np.where(first, margin + np.where(of_seen, -TIE, TIE), 0.0)
    return Decisions(labels, of_seen, first, limit)


def generalised(
    found: Decisions, sides: Sides, class_names: Sequence[str], gamma: float | None = None, seed: int = 0
) -> GeneralisedResult:
    """The accuracies of both sides, with and without calibration.

    Intervals are percentiles of a bootstrap that resamples the images of each class within it, since a test fixes their
    number. They do not include the choice of `gamma`.

    Args:
        gamma: calibration that was chosen on other classes (see `best_gamma`); None: no result with calibration.

    Raises:
        ValueError: there are no images of unseen classes.
    """
    if found.seen.all():
        raise ValueError("there are no images of unseen classes")
    gammas = [0.0] if gamma is None else [0.0, gamma]
    right = [found.right(each) for each in gammas]
    values: list[_Accuracy | _Area] = [
        _Accuracy(found.first & ~found.seen),
        _Area(found),
        *(_Accuracy(hits & side) for hits in right for side in (found.seen, ~found.seen)),
    ]
    exact = _applied(values, _weight(found)[None])
    drawn = np.concatenate([_applied(values, weights) for weights in _weights(found, seed)], axis=1)
    # The harmonic mean of each pair of accuracies.
    means = [harmonic_mean(of[2::2], of[3::2]) for of in (exact, drawn)]

    def estimate(place: int) -> Estimate:
        return percentiles(float(exact[place, 0]), drawn[place])

    def accuracy(place: int) -> CalibratedAccuracy:
        return CalibratedAccuracy(
            gamma=gammas[place],
            seen=estimate(2 + 2 * place),
            unseen=estimate(3 + 2 * place),
            harmonic_mean=percentiles(float(means[0][place, 0]), means[1][place]),
        )

    both = None
    if found.seen.any():
        both = GeneralisedAccuracy(
            seen_images=int(found.seen.sum()),
            uncalibrated=accuracy(0),
            calibrated=None if gamma is None else accuracy(1),
            area=estimate(1),
        )
    return GeneralisedResult(
        images=int((~found.seen).sum()),
        seen_classes=len(sides.seen),
        unseen_classes=len(sides.unseen),
        chance=1 / len(sides.unseen),
        zero_shot=estimate(0),
        per_class=_per_class(found, class_names),
        generalised=both,
    )


def unseen_accuracy(found: Decisions) -> float:
    """Mean top-1 accuracy per class of the images of unseen classes, among these."""
    return float(_weight(found)[found.first & ~found.seen].sum())


def harmonic_mean(seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """2 S U / (S + U) of each pair; 0 where both are 0."""
    total = seen + unseen
    return np.divide(2 * seen * unseen, total, out=np.zeros_like(total), where=total > 0)


def best_gamma(found: Decisions) -> float:
    """The gamma with the highest harmonic mean, which is to be chosen on other images than it is used for.

    The harmonic mean is constant between the limits of images, so that the middle of each interval stands for it. Of
    equally good ones, the nearest to 0.

    Raises:
        ValueError: a side has no images.
    """
    if found.seen.all() or not found.seen.any():
        raise ValueError("calibration needs images of seen and of unseen classes")
    limits = np.unique(found.limit[found.first])
    outside = [limits[:1] - 1, limits[-1:] + 1]
    gammas = np.concatenate([np.zeros(1), (limits[:-1] + limits[1:]) / 2, *outside])
    gammas = gammas[np.argsort(np.abs(gammas), kind="stable")]
    weight = _weight(found)
    seen, unseen = (
        _sum_below(found.limit, weight * (side & found.first), gammas) for side in (found.seen, ~found.seen)
    )
    return float(gammas[np.argmax(harmonic_mean(float(weight[found.seen & found.first].sum()) - seen, unseen))])


def _sum_below(limits: np.ndarray, weights: np.ndarray, gammas: np.ndarray) -> np.ndarray:
    """Sum of the weights whose limit lies below each gamma."""
    order = np.argsort(limits, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    return sums[np.searchsorted(limits[order], gammas)]


def _weight(found: Decisions) -> np.ndarray:
    """(N,) share of each image in the accuracy of its side."""
    counts = np.bincount(found.labels)
    sizes = [len(np.unique(found.labels[side])) or 1 for side in (found.seen, ~found.seen)]
    return 1 / (counts[found.labels] * np.where(found.seen, *sizes))


def _weights(found: Decisions, seed: int) -> Iterator[np.ndarray]:
    """Parts of the (`_RESAMPLES`, N) weights of images whose classes are resampled within themselves."""
    order = np.argsort(found.labels, kind="stable")
    counts = np.bincount(found.labels)
    size = counts[found.labels[order]]
    start = (np.cumsum(counts) - counts)[found.labels[order]]
    weight, generator, total = _weight(found), np.random.default_rng(seed), len(order)
    most = max(1, _DRAWN // total)
    for first in range(0, _RESAMPLES, most):
        rows = min(most, _RESAMPLES - first)
        drawn = order[start + (generator.random((rows, total)) * size).astype(np.int64)]
        times = np.bincount((drawn + np.arange(rows)[:, None] * total).ravel(), minlength=rows * total)
        yield times.reshape(rows, total) * weight


def _applied(values: "list[_Accuracy | _Area]", weights: np.ndarray) -> np.ndarray:
    """(V, R) values for (R, N) weights of the images."""
    return np.stack([value(weights) for value in values])


class _Accuracy:
    """Weight of the images that are `hits`, (N,) bool."""

    def __init__(self, hits: np.ndarray) -> None:
        self._hits = np.flatnonzero(hits)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        return weights[:, self._hits].sum(1)


class _Area:
    """AUSUC."""

    def __init__(self, found: Decisions) -> None:
        self._seen = np.flatnonzero(found.seen & found.first)
        unseen = np.flatnonzero(~found.seen & found.first)
        self._unseen = unseen[np.argsort(found.limit[unseen], kind="stable")]
        self._before = np.searchsorted(found.limit[self._unseen], found.limit[self._seen])

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(weights), len(self._unseen) + 1))
        np.cumsum(weights[:, self._unseen], axis=1, out=sums[:, 1:])
        return (weights[:, self._seen] * sums[:, self._before]).sum(1)


def _per_class(found: Decisions, class_names: Sequence[str]) -> dict[str, float]:
    labels, hits = found.labels[~found.seen], found.first[~found.seen]
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    accuracy = (np.bincount(labels, weights=hits)[present] / counts[present]).tolist()
    return dict(zip(distinct_names(class_names, present), accuracy, strict=True))
