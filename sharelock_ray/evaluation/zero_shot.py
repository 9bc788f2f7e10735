"""Zero-shot classification: the class whose text is nearest to the image (CLIP, arXiv 2103.00020, 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.result import ZeroShotResult
from sharelock_ray.evaluation.statistics import estimate


def zero_shot(
    image: torch.Tensor, labels: np.ndarray, prototypes: torch.Tensor, class_names: Sequence[str]
) -> tuple[ZeroShotResult, np.ndarray]:
    """Scores images against class prototypes.

    Args:
        image: (N, D) unit vectors.
        labels: (N,) index of each image's class among the prototypes.
        prototypes: (C, D) unit vectors.
        class_names: C names.

    Returns:
        the result, and (N,) the index of the nearest class of each image.

    Raises:
        ValueError: there are no images.
    """
    similarity = image @ prototypes.T
    top = similarity.topk(min(5, len(prototypes)), dim=1).indices.numpy()
    match = similarity.gather(1, torch.from_numpy(labels)[:, None])
    ranks = ((~(similarity < match)).sum(1) - 1).numpy()  # Ties, and NaN, count against.
    correct = ranks == 0
    present = np.unique(labels)
    per_class = {class_names[c]: float(correct[labels == c].mean()) for c in present}
    result = ZeroShotResult(
        images=len(labels),
        candidates=len(prototypes),
        classes=len(present),
        chance=1 / len(prototypes),
        top_1=estimate(correct),
        top_5=estimate(ranks < 5),
        mean_per_class=float(np.mean(list(per_class.values()))),
        per_class=per_class,
    )
    return result, top[:, 0]
