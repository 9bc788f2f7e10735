"""Classification of frozen vision features by their nearest neighbours among labelled training images.

Each of the k training images most similar to an image votes for its class with weight exp(similarity / T) (Wu et al.,
arXiv 1805.01978, 3.4; k = 20 and T = 0.07 as in DINO, arXiv 2104.14294, 4.1):

    score_c = sum over neighbours i of class c of exp(<x, x_i> / T),    prediction = argmax over c of score_c.

It predicts how well an encoder can be aligned (SAIL, arXiv 2412.04616).
"""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.evaluation.accuracy import Predictions, accuracies, joined, label_ranks
from sharelock_ray.evaluation.ranks import blocks, units
from sharelock_ray.evaluation.result import NeighboursResult, Ties
from sharelock_ray.onednn import product
from sharelock_ray.progress import Progress


def neighbours(
    training: torch.Tensor,
    training_labels: np.ndarray,
    features: torch.Tensor,
    labels: np.ndarray,
    class_names: Sequence[str],
    k: int = 20,
    temperature: float = 0.07,
    ties: Ties = "strict",
) -> tuple[NeighboursResult, Predictions]:
    """Classifies `features`.

    Args:
        training: (M, D) features of training images, at least one.
        training_labels: (M,)
        features: (N, D) features of test images.
        labels: (N,)
        class_names: C names.

    Returns:
        The result, and what was predicted for each image.

    Raises:
        ValueError: there are no images.
    """
    found = neighbour_ranks(training, training_labels, features, labels, len(class_names), k, temperature, ties)
    fields = accuracies(found, labels, class_names, len(class_names), ties)
    result = NeighboursResult(
        **fields, training_images=len(training), neighbours=min(k, len(training)), temperature=temperature
    )
    return result, found


def neighbour_ranks(
    training: torch.Tensor,
    training_labels: np.ndarray,
    features: torch.Tensor,
    labels: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    ties: Ties = "strict",
) -> Predictions:
    """Ranks the class of each image by the votes of its neighbours; see `neighbours`.

    Similarities are computed in blocks. Equally similar neighbours at the k-th place are chosen by the order of
    `torch.topk`. A class without a vote ranks behind all others, and is not tied.
    """
    known = torch.from_numpy(training_labels).to(features.device)
    parts: list[Predictions] = []
    with Progress("evaluate", "similarities", len(training) * len(features)) as progress:
        for rows in blocks(len(features)):
            queries = units(features[rows])
            nearest = queries.new_empty(len(queries), 0)
            voters = known.new_empty(len(queries), 0)
            for columns in blocks(len(training)):
                similarity = product(queries, units(training[columns]))
                progress.update(similarity.numel())
                top = similarity.topk(min(k, similarity.shape[1]))
                nearest = torch.cat([nearest, top.values], 1)
                voters = torch.cat([voters, known[columns][top.indices]], 1)
                nearest, kept = nearest.topk(min(k, nearest.shape[1]))
                voters = voters.gather(1, kept)
            # As shares of the votes, which neither overflow nor depend on the scale of the weights.
            shares = torch.softmax(nearest / temperature, 1)
            votes = shares.new_zeros(len(queries), classes).scatter_add_(1, voters, shares)
            own = torch.from_numpy(labels[rows])[:, None]
            unseen = (votes.gather(1, own.to(votes.device)) == 0)[:, 0].cpu().numpy()
            found = label_ranks(votes.cpu(), labels[rows], ties)
            parts.append(Predictions(np.where(unseen, classes, found.ahead), found.tied & ~unseen, found.predicted))
    return joined(parts)
