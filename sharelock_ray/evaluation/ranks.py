"""Ranks of matches, computed in blocks of similarities: memory does not grow with images times texts."""

from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.evaluation.result import Ties
from sharelock_ray.onednn import product
from sharelock_ray.progress import Progress

TIE = 1e-6
"""Cosine similarities that differ by at most this much are equal: it is about the resolution of float32."""
_BLOCK = 1024
"""A block of similarities fits the caches."""


@dataclass(frozen=True)
class Ranks:
    """Place of each query's match among its candidates."""

    ahead: np.ndarray
    """(N,) number of wrong candidates that rank before the match: 0 if the match is found first."""
    tied: np.ndarray
    """(N,) bool: whether a wrong candidate is as similar as the match. It does not depend on the rule."""


def ranks(image: torch.Tensor, text: torch.Tensor, owner: np.ndarray, ties: Ties = "strict") -> tuple[Ranks, Ranks]:
    """Counts, for each query, the wrong items that rank before its match.

    The match of an image is the most similar of its own texts. NaN counts as an error under every rule, and so do ties
    under `strict`: a model that maps everything to one embedding gains nothing.

    Args:
        image: (N, D) unit vectors.
        text: (M, D) unit vectors.
        owner: (M,) index of the image that each text belongs to.

    Returns:
        The ranks by image, (N,), among texts: all texts rank before the match of an image that has none. And those by
        text, (M,), among images.
    """
    owners = torch.from_numpy(owner)
    own = text.new_empty(len(text))
    for columns in blocks(len(text)):
        own[columns] = (text[columns] * image[owners[columns]]).sum(1)
    highest = text.new_full((len(image),), -torch.inf).scatter_reduce(0, owners, own, "amax")
    best = torch.nonzero(own >= highest[owners] - TIE)[:, 0]
    first = torch.full((len(image),), len(text)).scatter_reduce(0, owners[best], best, "amin")
    by_image, by_text = (Ranks(np.zeros(n, np.int64), np.zeros(n, bool)) for n in (len(image), len(text)))
    with Progress("evaluate", "similarities", len(image) * len(text)) as progress:
        for rows in blocks(len(image)):
            for columns in blocks(len(text)):
                similarity = product(image[rows], text[columns])
                # Matches are not counted. A mask would take longer than the matrix product.
                at = owners[columns] - rows.start
                texts = torch.nonzero((at >= 0) & (at < len(similarity)))[:, 0]
                similarity[at[texts], texts] = -torch.inf
                for found, some, of_block in (
                    (by_image, rows, place(similarity, highest[rows], first[rows] - columns.start, ties)),
                    (by_text, columns, place(similarity.T, own[columns], at, ties)),
                ):
                    found.ahead[some] += of_block.ahead
                    found.tied[some] |= of_block.tied
                progress.update(similarity.numel())
    return by_image, by_text


def place(similarity: torch.Tensor, match: torch.Tensor, index: torch.Tensor, ties: Ties) -> Ranks:
    """Ranks the match of each query among wrong candidates, or among a block of them.

    Args:
        similarity: (Q, C) of queries to candidates; -inf for those that are right.
        match: (Q,) similarity of each query to its match.
        index: (Q,) position of the match among the candidates; negative or beyond C if it lies outside the block.
        ties: what a wrong candidate does that differs from the match by at most `TIE`.
    """
    low, high = match - TIE, match + TIE
    # `not further` counts NaN, which compares false. NumPy counts faster than torch.
    not_further = similarity.shape[1] - np.count_nonzero((similarity < low[:, None]).numpy(), axis=1)
    nearer = np.count_nonzero((similarity > high[:, None]).numpy(), axis=1)
    tied = np.zeros(len(match), bool)
    ahead = not_further if ties == "strict" else nearer
    # Few queries have candidates that are neither nearer nor further, so only these are looked at in full.
    some = np.flatnonzero(not_further != nearer)
    if len(some):
        rows = torch.from_numpy(some)
        unclear = similarity[rows]
        equal = (unclear >= low[rows, None]) & (unclear <= high[rows, None])
        tied[some] = equal.any(1).numpy()
        if ties == "first_index":
            before = torch.arange(similarity.shape[1]) < index[rows, None]
            no_number = torch.isnan(unclear) | torch.isnan(match[rows, None])
            ahead[some] += (equal & before | no_number).sum(1).numpy()
    return Ranks(ahead, tied)


def nearest(query: torch.Tensor, item: torch.Tensor) -> np.ndarray:
    """(N,) index of the item, of (M, D), that is most similar to each query, of (N, D): the first of equal ones."""
    found = np.zeros(len(query), np.int64)
    for rows in blocks(len(query)):
        best = query.new_full((len(query[rows]),), -torch.inf)
        for columns in blocks(len(item)):
            similarity, index = product(query[rows], item[columns]).max(1)
            nearer = similarity > best
            best = torch.where(nearer, similarity, best)
            found[rows] = np.where(nearer.numpy(), index.numpy() + columns.start, found[rows])
    return found


def blocks(count: int) -> list[slice]:
    """Consecutive slices that cover `count` rows."""
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def units(vectors: torch.Tensor) -> torch.Tensor:
    """(N, D) `vectors` of any precision at length 1, in float32."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
