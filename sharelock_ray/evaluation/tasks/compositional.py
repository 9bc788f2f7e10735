"""Compositional choice: images and texts that differ in one respect, such as the order of words.

A sample has I images and T texts; image i and text i belong together, for i below m = min(I, T). With the similarity
s(i, t) of image i and text t,

    text:  s(i, i) > s(i, t) for all i < m, t != i        (each image is nearest to its own text)
    image: s(i, i) > s(j, i) for all i < m, j != i        (each text is nearest to its own image)
    group: both

are those of Winoground (arXiv 2204.03162, 4.1) for I = T = 2. With I = 1 and T >= 2, only `text` remains: SugarCrepe
(arXiv 2306.14610) and ARO (arXiv 2210.01936), whose own text is here the first one. MMVP (arXiv 2401.06209, 3) and COLA
(arXiv 2305.03689, multi-object) are the image score of I = T = 2.

Under `first_index`, a tie is right for the first item and wrong for the others, as in CLIP-Benchmark. The published
programs count it as wrong in Winoground, SugarCrepe and ARO's relation and attribution, and as right in ARO's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import place
from sharelock_ray.evaluation.result import (
    CompositionalChance,
    CompositionalResult,
    CompositionalScores,
    Measure,
    Ties,
)
from sharelock_ray.evaluation.statistics import proportion


@dataclass(frozen=True)
class Choices:
    """What each of N samples did; None if there is only one item to choose from. See the module."""

    text: np.ndarray | None
    image: np.ndarray | None
    tied: np.ndarray
    """(N,) bool: whether an own item is as near as a wrong one."""

    @property
    def group(self) -> np.ndarray | None:
        return None if self.text is None or self.image is None else self.text & self.image

    def of(self, some: np.ndarray) -> "Choices":
        """Those of some samples."""
        text, image = (None if hits is None else hits[some] for hits in (self.text, self.image))
        return Choices(text, image, self.tied[some])

    @property
    def strictest(self) -> tuple[Measure, np.ndarray]:
        """The name of the strictest score, and its (N,) hits: those of all choices of a sample."""
        measures: tuple[tuple[Measure, np.ndarray | None], ...] = (
            ("group", self.group),
            ("text", self.text),
            ("image", self.image),
        )
        return next((name, hits) for name, hits in measures if hits is not None)


def compositional(
    image: torch.Tensor,
    text: torch.Tensor,
    kinds: Sequence[str] | None = None,
    ties: Ties = "strict",
    image_of_sample: np.ndarray | None = None,
) -> CompositionalResult:
    """Scores choices.

    Args:
        image: (N, I, D) unit vectors.
        text: (N, T, D) unit vectors.
        kinds: N kinds of change, such as "swap_obj".
        image_of_sample: (N,) integers from 0: samples with the same one share their images, and the intervals are
            then over images.

    Raises:
        ValueError: there are no samples, or nothing to choose from.
    """
    found = choices(image, text, ties)
    groups = np.arange(len(image)) if image_of_sample is None else image_of_sample

    def scores(some: np.ndarray) -> CompositionalScores:
        of_image = np.unique(groups[some], return_inverse=True)[1]
        text, image, group = (
            None if hits is None else proportion(hits[some], of_image)
            for hits in (found.text, found.image, found.group)
        )
        return CompositionalScores(samples=len(some), text=text, image=image, group=group)

    kind = np.array(kinds or [])
    images, texts = image.shape[1], text.shape[1]
    return CompositionalResult(
        images=images * len(np.unique(groups)),
        ties=ties,
        images_of_sample=images,
        texts_of_sample=texts,
        total=scores(np.arange(len(image))),
        chance=chance(images, texts),
        by_kind={name: scores(np.flatnonzero(kind == name)) for name in dict.fromkeys(kinds or [])},
        tied=int(found.tied.sum()),
    )


def choices(image: torch.Tensor, text: torch.Tensor, ties: Ties = "strict") -> Choices:
    """Compares the images and the texts of each sample; see `compositional`.

    Raises:
        ValueError: there is nothing to choose from.
    """
    return judged(image @ text.transpose(1, 2), ties)


def judged(similarity: torch.Tensor, ties: Ties = "strict") -> Choices:
    """The choices by similarities, (N, I, T) of images to texts; see `choices`."""
    images, texts = similarity.shape[1:]
    if max(images, texts) < 2:
        raise ValueError("a compositional choice needs at least two images or two texts in a sample")
    by_image, tied_images = _nearest_is_own(similarity, ties)
    by_text, tied_texts = _nearest_is_own(similarity.transpose(1, 2), ties)
    return Choices(
        text=by_image if texts > 1 else None,
        image=by_text if images > 1 else None,
        tied=tied_images | tied_texts,
    )


def _nearest_is_own(similarity: torch.Tensor, ties: Ties) -> tuple[np.ndarray, np.ndarray]:
    """Whether the i-th candidate ranks first for the i-th query, for all queries that have an own one.

    Args:
        similarity: (N, Q, C)

    Returns:
        (N,) bool, and (N,) whether one of these candidates is tied with another.
    """
    samples, queries, candidates = similarity.shape
    own = torch.arange(min(queries, candidates))
    wrong = similarity[:, own].clone()
    match = wrong[:, own, own]
    wrong[:, own, own] = -torch.inf
    found = place(wrong.reshape(-1, candidates), match.reshape(-1), own.repeat(samples), ties)
    shape = (samples, len(own))
    return np.all(found.ahead.reshape(shape) == 0, axis=1), np.any(found.tied.reshape(shape), axis=1)


def chance(images: int, texts: int) -> CompositionalChance:
    """Scores of independent, equally distributed similarities.

    A group of two images and two texts is right if both own similarities exceed both others: 2! 2! / 4! = 1/6.
    """
    own = min(images, texts)
    return CompositionalChance(
        text=texts**-own if texts > 1 else None,
        image=images**-own if images > 1 else None,
        group=1 / 6 if images == texts == 2 else None,
    )
