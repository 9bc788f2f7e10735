"""Ranks of the right items among all, by blocks of similarities: memory does not grow with images times texts."""

import numpy as np
import torch

from sharelock_ray.progress import Progress

TIE = 1e-6
"""Similarities of unit vectors that are no further apart are equal: float32 knows no better."""
_BLOCK = 2048


def ranks(image: torch.Tensor, text: torch.Tensor, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the wrong items that are at least as near as the right one.

    Ties, and what is no number, count against: equal embeddings gain nothing.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        owner: (M,) index of the image that each text belongs to.

    Returns:
        by image, (N,): texts of other images that are at least as near to it as the nearest of its own; and by text,
        (M,): other images that are at least as near to it as its own. Of an image without texts, all are.
    """
    owners = torch.from_numpy(owner)
    own = text.new_empty(len(text))
    for columns in _blocks(len(text)):
        own[columns] = (text[columns] * image[owners[columns]]).sum(1)
    nearest = text.new_full((len(image),), -torch.inf).scatter_reduce(0, owners, own, "amax")
    by_image, by_text = np.zeros(len(image), np.int64), np.zeros(len(text), np.int64)
    with Progress("evaluate", "similarities", len(image) * len(text)) as progress:
        for rows in _blocks(len(image)):
            for columns in _blocks(len(text)):
                similarity = image[rows] @ text[columns].T
                # The right ones are not to be counted. Not by a mask, which would take longer than the products.
                at = owners[columns] - rows.start
                texts = torch.nonzero((at >= 0) & (at < len(similarity)))[:, 0]
                similarity[at[texts], texts] = -torch.inf
                # Whatever is not further away counts, and so does NaN.
                further = similarity < nearest[rows, None] - TIE
                by_image[rows] += further.shape[1] - np.count_nonzero(further.numpy(), axis=1)
                further = similarity < own[None, columns] - TIE
                by_text[columns] += len(further) - np.count_nonzero(further.numpy(), axis=0)
                progress.update(similarity.numel())
    return by_image, by_text


def _blocks(count: int) -> list[slice]:
    """Consecutive stretches of `count` rows."""
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
