"""Multi-label classification: mean average precision of images that may have several classes.

For each class, images are ordered by their similarity to it. With its P images in this order, of which the j-th has
n_j images without the class before it,

    AP = 1/P sum over j of j / (j + n_j),    mAP = mean of AP over the classes that have images

(as in CLIP-Benchmark 1.6.2 and torchnet's `APMeter`: no interpolation). CLIP-Benchmark averages over all classes and
gives 0 to one without images: its value is mAP * classes / candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.evaluation.accuracy import distinct_names
from sharelock_ray.evaluation.ranks import TIE
from sharelock_ray.evaluation.result import MultiLabelResult, Ties
from sharelock_ray.evaluation.statistics import Estimate, bootstrap_p, percentiles

_RESAMPLES = 1000


@dataclass(frozen=True)
class _Order:
    """Images of one class in their order, and of the images without it."""

    own: np.ndarray
    """(P,) positions of the images of the class."""
    others: np.ndarray
    """(N - P,) positions of the other images."""
    ahead: np.ndarray
    """(P,) how many of `others` come before each of `own`."""
    tied: int


def multi_label(
    image: torch.Tensor,
    has_class: np.ndarray,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
    ties: Ties = "strict",
    seed: int = 0,
) -> MultiLabelResult:
    """Scores the similarities of images and classes. NaN is the worst similarity.

    The interval is a percentile bootstrap over images.

    Args:
        image: (N, D) unit vectors.
        has_class: (N, C) bool.
        prototypes: (C, D) unit vectors.
        class_names: C names.

    Raises:
        ValueError: no image has a class.
    """
    present = np.flatnonzero(has_class.any(0))
    if not len(present):
        raise ValueError("mean average precision needs at least one image that has a class")
    orders = [_order((image @ prototypes[c]).double().numpy(), has_class[:, c], ties) for c in present.tolist()]
    by_class = _by_class(orders, len(image))
    return MultiLabelResult(
        images=len(image),
        ties=ties,
        candidates=len(class_names),
        classes=len(present),
        chance=float(has_class[:, present].mean()),
        mean_average_precision=percentiles(float(by_class.mean()), _resampled([orders], len(image), seed)[:, 0]),
        per_class=dict(zip(distinct_names(class_names, present), by_class.tolist(), strict=True)),
        tied=sum(order.tied for order in orders),
    )


def compare_precision(
    first: np.ndarray, second: np.ndarray, has_class: np.ndarray, ties: Ties = "strict", seed: int = 0
) -> tuple[Estimate, float]:
    """Compares the mean average precision of two models on the same images.

    Args:
        first: (N, C) similarities of images and classes.
        second: the same of the second model.
        has_class: (N, C) bool.

    Returns:
        The second value minus the first, with the interval of the paired bootstrap over images, and its p-value (see
        `statistics.compare`).

    Raises:
        ValueError: no image has a class.
    """
    present = np.flatnonzero(has_class.any(0))
    if not len(present):
        raise ValueError("mean average precision needs at least one image that has a class")
    orders = [
        [_order(scores[:, c].astype(np.float64), has_class[:, c], ties) for c in present.tolist()]
        for scores in (first, second)
    ]
    of_first, of_second = (_by_class(each, len(has_class)) for each in orders)
    value = float(of_second.mean() - of_first.mean())
    resampled = np.diff(_resampled(orders, len(has_class), seed))[:, 0]
    return percentiles(value, resampled), bootstrap_p(value, resampled)


def _by_class(orders: Sequence[_Order], images: int) -> np.ndarray:
    once = np.ones(images, np.int64)
    return np.array([_average_precision(order, once) for order in orders])


def _resampled(models: Sequence[Sequence[_Order]], images: int, seed: int) -> np.ndarray:
    """(R, M) mean average precisions of M models on the same resampled images."""
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES):
        drawn = np.bincount(generator.integers(0, images, images), minlength=images)
        here = [place for place, order in enumerate(models[0]) if drawn[order.own].any()]
        if here:
            means.append([np.mean([_average_precision(orders[place], drawn) for place in here]) for orders in models])
    return np.array(means)


def _order(score: np.ndarray, has: np.ndarray, ties: Ties) -> _Order:
    """Orders images by their score, (N,), for a class that the images `has`, (N,), have."""
    score = np.where(np.isnan(score), np.where(has, -np.inf, np.inf), score)
    decreasing = np.argsort(-score, kind="stable")
    own, others = decreasing[has[decreasing]], decreasing[~has[decreasing]]
    # Ascending negatives: an image comes after those whose negative is smaller.
    nearer = np.searchsorted(-score[others], -(score[own] + TIE), side="left")
    not_further = np.searchsorted(-score[others], -(score[own] - TIE), side="right")
    ahead = not_further.copy()
    tied = np.flatnonzero(nearer < not_further)
    if ties == "first_index":
        ahead = nearer.copy()
        for j in tied:
            ahead[j] += np.count_nonzero(others[nearer[j] : not_further[j]] < own[j])
    return _Order(own, others, ahead, len(tied))


def _average_precision(order: _Order, weight: np.ndarray) -> float:
    """Average precision where image i counts `weight[i]` times."""
    mine = weight[order.own]
    found = np.cumsum(mine)
    wrong = np.concatenate([[0], np.cumsum(weight[order.others])])[order.ahead]
    return float((mine * found / np.maximum(found + wrong, 1)).sum() / found[-1])
