"""Collapsed embeddings: measures of how unit vectors fill their space, in blocks of similarities."""

from typing import Literal

import numpy as np
import torch

from sharelock_ray.evaluation.ranks import blocks
from sharelock_ray.evaluation.signatures.evidence import CollapsedEmbeddings, Hubs, Spread, sample, sentence

_MOST = 2048
"""Number of embeddings that are measured at most, drawn at random."""
_FEWEST = 20
"""Number of embeddings below which the measures say little."""


def effective_rank(embeddings: torch.Tensor) -> float:
    """Effective rank (Roy and Vetterli, EUSIPCO 2007): the number of dimensions that embeddings take up.

        exp(-sum_i p_i ln p_i),    p_i = s_i / sum_j s_j,    s_i the singular values.

    Args:
        embeddings: (N, D)

    Returns:
        A number from 1, all rows are multiples of one, to min(N, D).
    """
    # The smaller one of two matrices with the same eigenvalues, apart from zeros.
    tall = embeddings if len(embeddings) >= embeddings.shape[1] else embeddings.T
    gram = embeddings.new_zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in blocks(len(tall)):
        part = tall[rows].double()
        gram += part.T @ part
    # Several times faster than torch's.
    singular = np.sqrt(np.linalg.eigvalsh(gram.numpy()).clip(min=0))
    # Roots of the rounding errors of zeros are not small.
    kept = singular[singular > 1e-6 * singular.max()]
    shares = kept / kept.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(embeddings: torch.Tensor) -> float:
    """Uniformity (Wang and Isola, ICML 2020, arXiv 2005.10242): ln mean exp(-2 |x_i - x_j|²) over i < j.

    Args:
        embeddings: (N, D) unit vectors, at least two.

    Returns:
        0 if all are equal; about -4 for uniformly distributed vectors of many dimensions.
    """
    total = 0.0
    for rows in blocks(len(embeddings)):
        for columns in blocks(len(embeddings)):
            # |x - y|² = 2 - 2 <x, y>
            similarity = embeddings[rows] @ embeddings[columns].T
            total += float(similarity.sub_(1).mul_(4).exp_().sum(dtype=torch.float64))
    count = len(embeddings)
    return float(np.log((total - count) / (count * (count - 1))))


def modality_gap(image: torch.Tensor, text: torch.Tensor) -> float:
    """Modality gap (Liang et al., NeurIPS 2022, arXiv 2203.02053): the distance |mean(image) - mean(text)|.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
    """
    return float(torch.linalg.vector_norm(image.mean(0) - text.mean(0)))


def hubness(queries: torch.Tensor, items: torch.Tensor, k: int = 10) -> Hubs:
    """Hubness (Radovanović et al., JMLR 11, 2010): the skewness of k-occurrences.

    N_k(i), the k-occurrence of an item, is the number of queries that have it among their k nearest:

        skewness = mean((N_k - mean)³) / std³.

    Args:
        queries: (Q, D) unit vectors.
        items: (M, D) unit vectors, at least k.
    """
    occurrences = np.zeros(len(items), np.int64)
    for rows in blocks(len(queries)):
        nearest = queries.new_empty(len(queries[rows]), 0)
        places = torch.empty(len(nearest), 0, dtype=torch.int64)
        for columns in blocks(len(items)):
            similarity = queries[rows] @ items[columns].T
            top = similarity.topk(min(k, similarity.shape[1]))
            nearest = torch.cat([nearest, top.values], 1)
            places = torch.cat([places, top.indices + columns.start], 1)
            nearest, kept = nearest.topk(min(k, nearest.shape[1]))
            places = places.gather(1, kept)
        occurrences += np.bincount(places.reshape(-1).numpy(), minlength=len(items))
    deviations = occurrences - occurrences.mean()
    spread = deviations.std()
    # All items occur equally often: no skewness.
    skewness = float((deviations**3).mean() / spread**3) if spread else 0.0
    return Hubs(queries=len(queries), k=k, skewness=skewness, largest=float(occurrences.max() / len(queries)))


def collapsed_embeddings(
    image: torch.Tensor, text: torch.Tensor, texts: Literal["captions", "classes"]
) -> CollapsedEmbeddings | None:
    """Measures projected embeddings, at most 2,048 of each modality.

    A modality is collapsed if its effective rank is below 3, or its uniformity above -0.5: two of its embeddings are
    then as near as with a cosine of 0.875. The modalities are apart if the gap is larger than the distance of two
    embeddings within either of them (root of the mean square). An item is a hub if it is among the k nearest of most
    queries, where k is 10, or a tenth of the items if these are fewer than 100.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors of different texts: those of equal texts are equal in any model.

    Returns:
        None if one of the modalities has fewer than 20 embeddings.
    """
    if min(len(image), len(text)) < _FEWEST:
        return None
    image, text = (embeddings[torch.from_numpy(sample(len(embeddings), _MOST))] for embeddings in (image, text))
    spreads = {"image": _spread(image), "text": _spread(text)}
    gap = modality_gap(image, text)
    within = max(_distance(image), _distance(text))
    hubs = {
        "image": hubness(text, image, min(10, len(image) // 10)),
        "text": hubness(image, text, min(10, len(text) // 10)),
    }
    faults = []
    for name, spread in spreads.items():
        if spread.effective_rank < 3:
            faults.append(f"{name}s take up {spread.effective_rank:.1f} of {spread.dim} dimensions (effective rank)")
        if spread.uniformity > -0.5:
            faults.append(f"{name}s are nearly equal (uniformity {spread.uniformity:.2f}; 0 is one point)")
    if gap > within:
        faults.append(f"images and texts are {gap:.2f} apart, but at most {within:.2f} among themselves")
    for name, found in hubs.items():
        if found.largest > 0.5:
            of = "text" if name == "image" else "image"
            faults.append(f"one {name} is among the {found.k} nearest of {100 * found.largest:.0f} % of the {of}s")
    ranks = " and ".join(f"{name}s {spread.effective_rank:.1f}" for name, spread in spreads.items())
    sound = (
        f"embeddings have effective ranks of {ranks} in {image.shape[1]} dimensions; uniformity, gap, hubs are sound"
    )
    return CollapsedEmbeddings(
        present=bool(faults),
        statement=sentence("; ".join(faults) or sound),
        image=spreads["image"],
        text=spreads["text"],
        texts=texts,
        modality_gap=gap,
        image_hubs=hubs["image"],
        text_hubs=hubs["text"],
        faults=tuple(faults),
    )


def _spread(embeddings: torch.Tensor) -> Spread:
    rows, dim = embeddings.shape
    return Spread(rows=rows, dim=dim, effective_rank=effective_rank(embeddings), uniformity=uniformity(embeddings))


def _distance(embeddings: torch.Tensor) -> float:
    """Root of the mean squared distance of two different unit vectors: sqrt(2 (1 - |mean|²) N / (N - 1))."""
    count = len(embeddings)
    squared = 1 - float(embeddings.double().mean(0).square().sum())
    return float(np.sqrt(max(0.0, 2 * squared * count / (count - 1))))
