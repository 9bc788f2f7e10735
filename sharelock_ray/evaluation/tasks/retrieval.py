"""Image-text retrieval: recall at k in both directions."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.result import RetrievalResult
from sharelock_ray.evaluation.statistics import proportion


def retrieval(
    image: torch.Tensor, text: torch.Tensor, image_of_text: np.ndarray, recall_at: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Scores retrieval in both directions.

    A query image is matched by any of its texts. Ties are errors (see `ranks`). The sampling unit of the intervals is
    the image in both directions, because texts of one image are not independent.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        image_of_text: (M,) index of the image that each text describes. Each image has at least one text.

    Raises:
        ValueError: there are no images.
    """
    by_image, by_text = ranks(image, text, image_of_text)
    return RetrievalResult(
        images=len(image),
        texts=len(text),
        image_to_text={k: proportion(by_image < k) for k in recall_at},
        text_to_image={k: proportion(by_text < k, image_of_text) for k in recall_at},
    )
