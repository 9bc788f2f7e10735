"""Accuracies of single-label classification, which its tasks share.

    top-k = mean over images of [ahead < k],    mean per class = mean over classes c of top-1 among the images of c,

where ahead is the number of wrong classes that rank before the image's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sharelock_ray.evaluation.names import shared_names
from sharelock_ray.evaluation.ranks import Ranks, place
from sharelock_ray.evaluation.result import Ties
from sharelock_ray.evaluation.statistics import class_mean, proportion


@dataclass(frozen=True)
class Predictions(Ranks):
    """Ranks of the images' classes, and the classes that score highest."""

    predicted: np.ndarray
    """(N,); the first of equal ones."""


def accuracies(
    found: Ranks, labels: np.ndarray, class_names: Sequence[str], candidates: int, ties: Ties
) -> dict[str, Any]:
    """The fields of a `ClassificationResult`.

    Args:
        found: ranks of the images' classes under the rule `ties`.
        labels: (N,) class of each image.
        class_names: by label.
        candidates: number of ranked classes.

    Raises:
        ValueError: there are no images.
    """
    hits = found.ahead == 0
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    accuracy = (np.bincount(labels, weights=hits)[present] / counts[present]).tolist()
    mean = class_mean(hits, labels)
    return {
        "images": len(labels),
        "ties": ties,
        "candidates": candidates,
        "classes": len(present),
        "chance": 1 / candidates,
        "top_1": proportion(hits),
        "top_5": proportion(found.ahead < 5),
        "mean_per_class": mean.value,
        "mean_per_class_interval": (mean.low, mean.high),
        "per_class": dict(zip(distinct_names(class_names, present), accuracy, strict=True)),
        "tied": int(found.tied.sum()),
    }


def label_ranks(scores: torch.Tensor, labels: np.ndarray, ties: Ties) -> Predictions:
    """Ranks the class of each image by scores.

    Args:
        scores: (N, C); changed in place. Scores that differ by at most `ranks.TIE` are equal.
        labels: (N,)
    """
    own, predicted = torch.from_numpy(labels), scores.argmax(1).numpy()
    match = scores[torch.arange(len(own)), own]
    scores[torch.arange(len(own)), own] = -torch.inf
    found = place(scores, match, own, ties)
    return Predictions(found.ahead, found.tied, predicted)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions for consecutive images; for none if there are no parts."""
    none = Predictions(np.empty(0, np.int64), np.empty(0, bool), np.empty(0, np.int64))
    names = ("ahead", "tied", "predicted")
    return Predictions(*(np.concatenate([getattr(part, name) for part in (none, *parts)]) for name in names))


def distinct_names(class_names: Sequence[str], classes: np.ndarray) -> list[str]:
    """The names of `classes`, (K,); the label follows a name that several classes share."""
    shared = shared_names(class_names)
    names = ((class_names[c], c) for c in classes.tolist())
    return [f"{name} (label {c})" if name in shared else name for name, c in names]
