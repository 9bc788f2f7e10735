"""Cross-modal retrieval: recall@k both ways over a gallery of pairs."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.result import RetrievalResult
from sharelock_ray.evaluation.statistics import share


def retrieval(
    image: torch.Tensor, text: torch.Tensor, image_of_text: np.ndarray, recall_at: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Scores retrieval in both directions.

    An image counts as found by any of its texts. Ties count against the match (see `ranks`). Intervals of both
    directions are over images: texts of one image are no independent draws.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        image_of_text: (M,) index of the image that each text describes; every image has at least one text.

    Raises:
        ValueError: there are no images.
    """
    by_image, by_text = ranks(image, text, image_of_text)
    return RetrievalResult(
        images=len(image),
        texts=len(text),
        image_to_text={k: share(by_image < k) for k in recall_at},
        text_to_image={k: share(by_text < k, image_of_text) for k in recall_at},
    )
