"""Ranks of matches, computed in blocks of similarities: memory does not grow with images times texts."""

import numpy as np
import torch

from sharelock_ray.progress import Progress

TIE = 1e-6
"""Cosine similarities that differ by at most this much are equal: it is about the resolution of float32."""
_BLOCK = 2048


def ranks(image: torch.Tensor, text: torch.Tensor, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts, for each query, the wrong items that are at least as similar to it as its match.

    Ties and NaN count as errors, so a model that maps everything to one embedding gains nothing.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        owner: (M,) index of the image that each text belongs to.

    Returns:
        By image, (N,): the number of texts of other images that are at least as similar to it as the most similar of
        its own texts; all of them if it has no text. By text, (M,): the number of other images that are at least as
        similar to it as its own image.
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
                # Matches are not counted. A mask would take longer than the matrix product.
                at = owners[columns] - rows.start
                texts = torch.nonzero((at >= 0) & (at < len(similarity)))[:, 0]
                similarity[at[texts], texts] = -torch.inf
                # `not further` counts NaN, which compares false.
                further = similarity < nearest[rows, None] - TIE
                by_image[rows] += further.shape[1] - np.count_nonzero(further.numpy(), axis=1)
                further = similarity < own[None, columns] - TIE
                by_text[columns] += len(further) - np.count_nonzero(further.numpy(), axis=0)
                progress.update(similarity.numel())
    return by_image, by_text


def _blocks(count: int) -> list[slice]:
    """Consecutive slices that cover `count` rows."""
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
