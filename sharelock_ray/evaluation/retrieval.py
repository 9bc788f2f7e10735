"""Cross-modal retrieval: recall@k both ways over a gallery of pairs."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.result import RetrievalResult
from sharelock_ray.evaluation.statistics import estimate

_BLOCK = 4096


def retrieval(
    image: torch.Tensor, text: torch.Tensor, image_of_text: np.ndarray, recall_at: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Scores retrieval in both directions.

    An image counts as found by any of its texts. Ties count against the match, so equal embeddings gain nothing.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        image_of_text: (M,) index of the image that each text describes; every image has at least one text.
    """
    owner = torch.from_numpy(image_of_text)
    by_text = _ranks_of_images(image, text, owner)
    by_image = _best_ranks_of_texts(image, text, owner)
    return RetrievalResult(
        images=len(image),
        texts=len(text),
        image_to_text={k: estimate(by_image < k) for k in recall_at},
        text_to_image={k: estimate(by_text < k) for k in recall_at},
    )


def _ranks_of_images(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> np.ndarray:
    """(M,) how many wrong images are at least as near to each text as its own image."""
    ranks = []
    for rows, own in zip(text.split(_BLOCK), owner.split(_BLOCK), strict=True):
        similarity = rows @ image.T
        match = similarity.gather(1, own[:, None])
        ranks.append((~(similarity < match)).sum(1) - 1)
    return torch.cat(ranks).numpy()


def _best_ranks_of_texts(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> np.ndarray:
    """(N,) how many texts of other images are at least as near to each image as the nearest of its own texts."""
    ranks = []
    for start in range(0, len(image), _BLOCK):
        similarity = image[start : start + _BLOCK] @ text.T
        is_own = owner[None, :] == torch.arange(start, start + len(similarity))[:, None]
        match = similarity.masked_fill(~is_own, float("-inf")).amax(1, keepdim=True)
        ranks.append((~(similarity < match) & ~is_own).sum(1))
    return torch.cat(ranks).numpy()
