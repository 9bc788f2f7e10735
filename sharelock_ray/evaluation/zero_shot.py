"""Zero-shot classification: the class whose text is nearest to the image (CLIP, arXiv 2103.00020, 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.result import ZeroShot, ZeroShotResult
from sharelock_ray.evaluation.statistics import proportion


def targets(class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What images can be told apart as: classes of one name have equal prompts, and so are one target.

    Returns:
        (T,) the first class of each name, and (C,) the target of each class.
    """
    target = {name: i for i, name in enumerate(dict.fromkeys(class_names))}
    of_class = np.array([target[name] for name in class_names], np.int64)
    return np.unique(of_class, return_index=True)[1], of_class


def doubles(class_names: Sequence[str]) -> dict[str, list[int]]:
    """Labels by name, of the names that more than one class has."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        labels.setdefault(name, []).append(label)
    return {name: of_name for name, of_name in labels.items() if len(of_name) > 1}


def zero_shot(
    image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, class_names: Sequence[str]
) -> ZeroShot:
    """Scores images against class prototypes, among the classes that have images and among all.

    Classes of one name are one target: an image of either is right where that name is nearest. Each keeps an accuracy
    of its own, and its part in the mean over classes. Ties of different names count against (see `ranks`).

    Args:
        image: (N, D) unit vectors.
        labels: (N,) class of each image.
        prototypes: (C, D) unit vectors.
        class_names: C names.

    Raises:
        ValueError: there are no images.
    """
    first, of_class = targets(class_names)
    of_image = of_class[labels]
    doubled = doubles(class_names)
    names = [f"{name} (label {i})" if name in doubled else name for i, name in enumerate(class_names)]

    def among(candidates: np.ndarray) -> ZeroShotResult:
        """Scores among these targets."""
        _, rank = ranks(prototypes[first[candidates]], image, np.searchsorted(candidates, of_image))
        counts = np.bincount(labels)
        present = np.flatnonzero(counts)
        accuracy = (np.bincount(labels, weights=rank == 0)[present] / counts[present]).tolist()
        return ZeroShotResult(
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
    among_all = among(every)
    return ZeroShot(among_present=among_all if len(present) == len(every) else among(present), among_all=among_all)
