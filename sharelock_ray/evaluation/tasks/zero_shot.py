"""Zero-shot classification: the class whose text is nearest to the image (CLIP, arXiv 2103.00020, 3.1)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.result import ZeroShotResult
from sharelock_ray.evaluation.statistics import proportion


def targets(class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Groups classes into targets. Classes that share a name have equal prompts, so they form one target.

    Returns:
        (T,) the first class of each target, and (C,) the target of each class.
    """
    target = {name: i for i, name in enumerate(dict.fromkeys(class_names))}
    of_class = np.array([target[name] for name in class_names], np.int64)
    return np.unique(of_class, return_index=True)[1], of_class


def shared_names(class_names: Sequence[str]) -> dict[str, list[int]]:
    """The names that several classes share, with their labels."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        labels.setdefault(name, []).append(label)
    return {name: of_name for name, of_name in labels.items() if len(of_name) > 1}


def zero_shot(
    image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, class_names: Sequence[str]
) -> list[ZeroShotResult]:
    """Ranks the class prototypes for each image: first among the classes that have images, then among all classes.

    Classes that share a name are one target: an image of any of them is correct if that name is the nearest. Each
    class keeps its own accuracy and its weight in the mean per class. Ties between names are errors (see `ranks`).

    Args:
        image: (N, D) unit vectors.
        labels: (N,) class of each image.
        prototypes: (C, D) unit vectors.
        class_names: C names.

    Returns:
        The result among the classes that have images and the result among all. Only the latter if they are the same.

    Raises:
        ValueError: there are no images.
    """
    first, of_class = targets(class_names)
    of_image = of_class[labels]
    shared = shared_names(class_names)
    names = [f"{name} (label {i})" if name in shared else name for i, name in enumerate(class_names)]

    def among(candidate_set: Literal["present", "all"], candidates: np.ndarray) -> ZeroShotResult:
        """`candidates` are (K,) targets, ascending."""
        _, rank = ranks(prototypes[first[candidates]], image, np.searchsorted(candidates, of_image))
        counts = np.bincount(labels)
        present = np.flatnonzero(counts)
        accuracy = (np.bincount(labels, weights=rank == 0)[present] / counts[present]).tolist()
        return ZeroShotResult(
            candidate_set=candidate_set,
            images=len(labels),
            candidates=len(candidates),
            classes=len(present),
            chance=1 / len(candidates),
            top_1=proportion(rank == 0),
            top_5=proportion(rank < 5),
            mean_per_class=float(np.mean(accuracy)),
            per_class={names[c]: value for c, value in zip(present, accuracy, strict=True)},
        )

    every, present = np.arange(len(first)), np.unique(of_image)
    among_all = among("all", every)
    return [among_all] if len(present) == len(every) else [among("present", present), among_all]
