"""Zero-shot classification: the class whose text is nearest to the image (CLIP, arXiv 2103.00020, 3.1).

A class c is the normalised mean of its normalised prompts, one for each template (CLIP, 3.1.4):

    w_c = m_c / |m_c|,    m_c = mean over prompts t of c of e_t / |e_t|,    prediction = argmax over c of <image, w_c>.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from sharelock_ray.evaluation.accuracy import Predictions, accuracies, joined, label_ranks
from sharelock_ray.evaluation.ranks import Ranks, blocks, place
from sharelock_ray.evaluation.result import Ties, ZeroShotResult
from sharelock_ray.onednn import product
from sharelock_ray.progress import Progress


def ensemble(prompts: torch.Tensor, class_of_prompt: np.ndarray, classes: int) -> torch.Tensor:
    """Averages the prompts of each class. Classes may have different numbers of prompts.

    Args:
        prompts: (M, D) embeddings.
        class_of_prompt: (M,) class of each, from 0.

    Returns:
        (classes, D) unit vectors.

    Raises:
        ValueError: a class has no prompt.
    """
    counts = np.bincount(class_of_prompt, minlength=classes)
    if not counts.all():
        raise ValueError(f"class {np.argmin(counts)} has no prompt")
    total = prompts.new_zeros(classes, prompts.shape[1])
    for rows in blocks(len(prompts)):
        units = torch.nn.functional.normalize(prompts[rows], dim=-1)
        total.index_add_(0, torch.from_numpy(class_of_prompt[rows]), units)
    return torch.nn.functional.normalize(total, dim=-1)


def targets(class_names: Sequence[str], ties: Ties = "strict") -> tuple[np.ndarray, np.ndarray]:
    """Groups classes into targets. Classes that share a name have equal prompts, so they form one target.

    Under `first_index`, each class is a target: only the first of those that share a name can be predicted.

    Returns:
        (T,) the first class of each target, and (C,) the target of each class.
    """
    if ties == "first_index":
        return np.arange(len(class_names)), np.arange(len(class_names))
    target = {name: i for i, name in enumerate(dict.fromkeys(class_names))}
    of_class = np.array([target[name] for name in class_names], np.int64)
    return np.unique(of_class, return_index=True)[1], of_class


def zero_shot(
    image: torch.Tensor,
    labels: np.ndarray,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
    ties: Ties = "strict",
    subset: np.ndarray | None = None,
) -> list[ZeroShotResult]:
    """Ranks the class prototypes for each image: first among the classes that have images, then among all classes.

    Classes that share a name are one target under `strict`: an image of any of them is correct if that name is the
    nearest. Each class keeps its own accuracy and its weight in the mean per class.

    Args:
        image: (N, D) unit vectors.
        labels: (N,) class of each image.
        prototypes: (C, D) unit vectors.
        class_names: C names.
        subset: (S,) the classes to rank, such as the 200 classes of ImageNet-R. There is then one result.

    Returns:
        The result among the classes that have images and the result among all. Only the latter if they are the same.

    Raises:
        ValueError: there are no images, or the class of an image is not in `subset`.
    """

    found = zero_shot_ranks(image, labels, prototypes, class_names, ties, subset)
    return [result for result, _, _ in found]


def zero_shot_ranks(
    image: torch.Tensor,
    labels: np.ndarray,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
    ties: Ties = "strict",
    subset: np.ndarray | None = None,
) -> list[tuple[ZeroShotResult, Ranks, np.ndarray]]:
    """As `zero_shot`; each result stands with the ranks, (N,), of the images' classes and with the ranked classes,
    (K,)."""

    def among(
        candidate_set: Literal["present", "all", "subset"], classes: np.ndarray
    ) -> tuple[ZeroShotResult, Ranks, np.ndarray]:
        found, candidates = class_ranks(image, labels, prototypes, class_names, classes, ties)
        fields = accuracies(found, labels, class_names, candidates, ties)
        return ZeroShotResult(candidate_set=candidate_set, **fields), found, classes

    if subset is not None:
        return [among("subset", subset)]
    among_all = among("all", np.arange(len(class_names)))
    of_class = targets(class_names, ties)[1]
    present = np.unique(of_class[labels])
    return [among_all] if len(present) == among_all[0].candidates else [among("present", np.unique(labels)), among_all]


def class_ranks(
    image: torch.Tensor,
    labels: np.ndarray,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
    classes: np.ndarray,
    ties: Ties = "strict",
) -> tuple[Predictions, int]:
    """Ranks the class of each image among `classes`.

    Args:
        classes: (K,) labels.

    Returns:
        The predictions, (N,), and the number of candidates: classes that share a name count once under `strict`, as the
        first of them.

    Raises:
        ValueError: the class of an image is not among `classes`.
    """
    first, of_class = targets(class_names, ties)
    candidates = np.unique(of_class[classes])
    of_image = of_class[labels]
    if len(missing := np.setdiff1d(of_image, candidates)):
        raise ValueError(f"images have the class {class_names[first[missing[0]]]}, which is not ranked")
    texts, own = prototypes[first[candidates]], np.searchsorted(candidates, of_image)
    parts: list[Predictions] = []
    with Progress("evaluate", "similarities", len(image) * len(texts)) as progress:
        for rows in blocks(len(image)):
            similarity = product(image[rows], texts)
            parts.append(label_ranks(similarity, own[rows], ties))
            progress.update(similarity.numel())
    found = joined(parts)
    return replace(found, predicted=first[candidates][found.predicted]), len(candidates)


def any_class_ranks(
    image: torch.Tensor,
    has_class: np.ndarray,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
    ties: Ties = "strict",
) -> tuple[Ranks, int]:
    """Ranks the nearest of the right classes of each image, as for ReaL labels (arXiv 2006.07159).

    Args:
        has_class: (N, C) bool; each image has at least one class.

    Returns:
        The ranks, (N,), and the number of candidates: classes that share a name count once under `strict`.
    """
    first, of_class = targets(class_names, ties)
    has = np.zeros((len(image), len(first)), bool)
    for c, target in enumerate(of_class.tolist()):
        has[:, target] |= has_class[:, c]
    found = Ranks(np.zeros(len(image), np.int64), np.zeros(len(image), bool))
    for rows in blocks(len(image)):
        similarity, own = product(image[rows], prototypes[first]), torch.from_numpy(has[rows])
        match, index = similarity.masked_fill(~own, -torch.inf).max(1)
        of_block = place(similarity.masked_fill(own, -torch.inf), match, index, ties)
        found.ahead[rows], found.tied[rows] = of_block.ahead, of_block.tied
    return found, len(first)
