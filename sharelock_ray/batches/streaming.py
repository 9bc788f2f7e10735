"""Streaming of feature sets that are too large for a node: parts are read from storage in the order of their use.

A part is in memory from the first to the last batch that uses it. This needs an order of the pairs in which few parts
are in use at a time (`AlignmentSpec.order`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from sharelock_ray.batches.placement import PairRows, Placement, RowStore
from sharelock_ray.features.featureset import FeatureSet


@dataclass(frozen=True)
class Piece:
    """Rows of a part; `side` is 0 for the vision set and 1 for the language set, `rows` are relative to the part."""

    side: int
    part: int
    rows: np.ndarray


Reader = Callable[[tuple[FeatureSet, FeatureSet], Sequence[Piece]], Iterator[np.ndarray]]
"""Yields the (n, D) embeddings of each piece, in order; it may read ahead."""


def read_here(sets: tuple[FeatureSet, FeatureSet], pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    """Reads each piece in this process when it is needed."""
    return (sets[piece.side].part_embeddings(piece.part, piece.rows) for piece in pieces)


class StreamedRows(RowStore):
    """Reads the rows from storage again in every pass.

    Args:
        read: reader of pieces.
    """

    def __init__(
        self, vision: FeatureSet, language: FeatureSet, device: torch.device, where: Placement, read: Reader
    ) -> None:
        super().__init__(vision, language, device, where)
        self._read = read

    def _selected(
        self, batches: Iterable[PairRows], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[PairRows, list[torch.Tensor]]]:
        batches = list(batches)
        uses = [use for side in (0, 1) for use in _uses(side, self._sets[side], [rows[side] for rows in batches])]
        uses.sort(key=lambda use: (use.first, use.piece.side, use.piece.part))
        coming = zip(uses, self._read(self._sets, [use.piece for use in uses]), strict=True)
        begins = Counter(use.first for use in uses)
        held: list[_Held] = []
        for number, rows in enumerate(batches):
            held += [_Held(use, torch.from_numpy(values)) for use, values in islice(coming, begins[number])]
            buffers = next(slots)
            for side, features in enumerate(self._sets):
                here = [each for each in held if each.use.piece.side == side]
                _gather(rows[side], features, here, buffers[side])
            held = [each for each in held if each.use.last > number]
            yield rows, [buffer[: len(wanted)] for buffer, wanted in zip(buffers, rows, strict=True)]


@dataclass(frozen=True)
class _Use:
    """A piece, and the first and last batch of a pass that use it."""

    piece: Piece
    first: int
    last: int


@dataclass(frozen=True)
class _Held:
    """A piece with its embeddings `values`, (n, D)."""

    use: _Use
    values: torch.Tensor


def _uses(side: int, features: FeatureSet, batches: list[np.ndarray]) -> Iterator[_Use]:
    """Yields the rows of each part that the batches of a pass use."""
    rows = np.concatenate([np.empty(0, np.int64), *batches])
    batch = np.repeat(np.arange(len(batches)), [len(wanted) for wanted in batches])
    order = np.argsort(rows)
    starts = features.part_starts
    bounds = np.searchsorted(rows[order], starts)
    for part in np.flatnonzero(np.diff(bounds)):
        chosen = order[bounds[part] : bounds[part + 1]]
        # Images of one class may share a text.
        piece = Piece(side, int(part), np.unique(rows[chosen]) - starts[part])
        yield _Use(piece, int(batch[chosen].min()), int(batch[chosen].max()))


def _gather(rows: np.ndarray, features: FeatureSet, held: list[_Held], out: torch.Tensor) -> None:
    """Copies the embeddings of `rows`, all of which are in `held`, to `out`."""
    part = features.part_of(rows)
    for each in held:
        places = np.flatnonzero(part == each.use.piece.part)
        wanted = rows[places] - features.part_starts[each.use.piece.part]
        found = np.searchsorted(each.use.piece.rows, wanted)
        out[torch.from_numpy(places)] = each.values[torch.from_numpy(found)]
