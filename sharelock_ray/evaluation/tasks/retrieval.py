"""Image-text retrieval: recall at k in both directions.

The recall at k of a direction is the share of its queries whose match is among the k nearest items:

    recall@k = mean over queries q of [ahead(q) < k],

where ahead(q) is the number of wrong items that rank before the match. An image that has several texts is matched by
the nearest of them, as in Karpathy and Fei-Fei (arXiv 1412.2306) and CLIP-Benchmark.
"""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import Ranks, ranks
from sharelock_ray.evaluation.result import RetrievalResult, Ties
from sharelock_ray.evaluation.statistics import proportion


def retrieval(
    image: torch.Tensor,
    text: torch.Tensor,
    image_of_text: np.ndarray,
    recall_at: Sequence[int] = (1, 5, 10),
    ties: Ties = "strict",
) -> RetrievalResult:
    """Scores retrieval in both directions.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        image_of_text: (M,) index of the image that each text describes. Each image has at least one text.

    Raises:
        ValueError: there are no images.
    """
    return recalls(*ranks(image, text, image_of_text, ties), image_of_text, recall_at, ties)


def recalls(
    by_image: Ranks, by_text: Ranks, image_of_text: np.ndarray, recall_at: Sequence[int], ties: Ties
) -> RetrievalResult:
    """Summarises ranks that were computed under the rule `ties`.

    The sampling unit of the intervals is the image in both directions, because texts of one image are not independent.
    """
    images, texts = len(by_image.ahead), len(by_text.ahead)
    return RetrievalResult(
        images=images,
        texts=texts,
        ties=ties,
        image_to_text={k: proportion(by_image.ahead < k) for k in recall_at},
        text_to_image={k: proportion(by_text.ahead < k, image_of_text) for k in recall_at},
        chance_image_to_text={k: _chance(np.bincount(image_of_text, minlength=images), texts, k) for k in recall_at},
        chance_text_to_image={k: min(1.0, k / images) for k in recall_at},
        tied_images=int(by_image.tied.sum()),
        tied_texts=int(by_text.tied.sum()),
    )


def _chance(own: np.ndarray, texts: int, k: int) -> float:
    """Recall at k of a random order of `texts` texts, of which image i has `own[i]`.

    None of them is among the first k with the probability product over j < k of (texts - own[i] - j) / (texts - j).
    """
    place = np.arange(min(k, texts))
    counts, images = np.unique(own, return_counts=True)
    missed = np.prod(np.maximum(texts - counts[:, None] - place, 0) / (texts - place), axis=1)
    return float(1 - missed @ images / images.sum())
