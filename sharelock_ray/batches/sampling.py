"""Sampling of the pairs of each step's global batch: the same for any number of workers and after a resume."""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
import torch

from sharelock_ray.batches.placement import MappedRows, PairRows, RowStore, placement
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet, Pairs

# Number of parts in use at a time in the order `parts`; up to twice as many while one part ends and the next begins.
# With at most this many workers, no part is read twice in an epoch.
_STREAMS = 16


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: image (n, D_vision) and text (n, D_language) embeddings, of the stored type.

    Pairs with equal ids in `positives`, (n,) int64, are positives of each other; without ids, the only positive of an
    image is its own text.
    """

    image: torch.Tensor
    text: torch.Tensor
    positives: torch.Tensor | None = None


def split_validation(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """Splits pairs into training and validation pairs by a hash of the key; added data does not move existing pairs."""
    held = is_held_out(pairs.vision, pairs.vision_rows, fraction)
    return pairs.select(~held), pairs.select(held)


def drawn(pairs: Pairs, count: int | None, seed: int) -> Pairs:
    """Draws `count` pairs by their keys and `seed`, whatever their order; a smaller count draws a subset. None: all.

    Raises:
        RequestError: there are fewer pairs.
    """
    if count is None:
        return pairs
    if count > len(pairs):
        raise RequestError(f"`alignment.training_pairs` is {count:,}, but there are {len(pairs):,} pairs to train on")
    by_key = np.argsort(pairs.vision.columns["key_hash"][pairs.vision_rows], kind="stable")
    kept = np.zeros(len(pairs), bool)
    kept[by_key[np.random.default_rng(seed).permutation(len(pairs))[:count]]] = True
    return pairs.select(kept)


def is_held_out(vision: FeatureSet, rows: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: whether each of some rows of a vision set is for validation."""
    held: np.ndarray = vision.columns["key_hash"][rows] < int(fraction * 2**32)
    return held


class PairBatches:
    """Global batches drawn without replacement within an epoch.

    The order of an epoch is a permutation from (seed, epoch), and each rank takes a slice. An incomplete batch at the
    end of an epoch is dropped, since it would have fewer negatives. Each epoch draws one of an image's captions.

    Args:
        pairs: if they are fewer than a batch, each epoch is one batch of all pairs.
        positives: which pairs are positives (see `AlignmentSpec.positives`).
        order: order of pairs in an epoch (see `AlignmentSpec.order`).
        store: row store of both sets, to share between instances; by default one over the node's mapped files.

    Raises:
        RequestError: `positives` is `label`, and the vision set has no labels.
    """

    def __init__(
        self,
        pairs: Pairs,
        global_batch_size: int,
        seed: int,
        device: torch.device,
        positives: Literal["pair", "text", "label"] = "pair",
        order: Literal["global", "parts"] = "global",
        store: RowStore | None = None,
    ) -> None:
        self._pairs, self._seed, self._order = pairs, seed, order
        sets = pairs.vision, pairs.language
        self._store = store or MappedRows(*sets, device, placement(*sets, device))
        self._text_ids = _ids(pairs.language.columns["text"]) if positives == "text" else None
        self._label_ids = _label_ids(pairs) if positives == "label" else None
        self.global_batch_size = min(global_batch_size, len(pairs))
        self.steps_per_epoch = max(1, len(pairs) // self.global_batch_size)
        # Two epochs, since the next batch is prefetched across the end of an epoch.
        self._epochs = lru_cache(maxsize=2)(self._epoch)
        self._swept: dict[tuple[int, int], list[Batch]] = {}

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Rank `rank`'s slice of the global batch of `step` (from 0), in its own memory."""
        return next(self.prefetch([step], rank, world_size))

    def prefetch(self, steps: Iterable[int], rank: int, world_size: int) -> Generator[Batch]:
        """Yields `batch` of each of `steps`. A batch is valid until the next, which is gathered while it is used."""
        epochs = groupby(steps, lambda step: step // self.steps_per_epoch)
        return self._gather(
            (
                (self._rows(_slice(self._chosen(step), rank, world_size), self._captions(step)) for step in of_epoch)
                for _, of_epoch in epochs
            ),
            -(-self.global_batch_size // world_size),
        )

    def sweep(self, rank: int, world_size: int) -> Generator[Batch]:
        """Yields this rank's slices of all pairs in order, each with its first caption, in batches of equal size.

        A batch is valid until the next. If rows are streamed from storage, the first sweep keeps them for later ones.
        """
        if (rank, world_size) in self._swept:
            yield from self._swept[rank, world_size]
            return
        kept: list[Batch] = []
        first = self._pairs.caption_rows[self._pairs.caption_start[:-1]]
        parts = np.array_split(np.arange(len(self._pairs)), self.steps_per_epoch)
        one_pass = (self._rows(_slice(part, rank, world_size), first) for part in parts)
        for batch in self._gather([one_pass], -(-len(parts[0]) // world_size)):
            if self._store.placement.kind == "storage":
                kept.append(Batch(batch.image.clone(), batch.text.clone(), batch.positives))
            yield batch
        if kept:
            self._swept[rank, world_size] = kept

    def keys(self, step: int) -> list[str]:
        """Keys of the global batch of `step`, in its order."""
        return list(self._pairs.vision.keys[self._pairs.vision_rows[self._chosen(step)]])

    def not_finite(self) -> list[str]:
        """Keys of the pairs with a non-finite embedding of the image or the first caption."""
        bad = [
            ~(batch.image.isfinite().all(1) & batch.text.isfinite().all(1)).cpu().numpy() for batch in self.sweep(0, 1)
        ]
        return list(self._pairs.keys[np.concatenate(bad)])

    def _gather(self, passes: Iterable[Iterable[PairRows]], max_rows: int) -> Generator[Batch]:
        """Yields the batches of these rows, of at most `max_rows` rows each."""
        with closing(self._store.gather(passes, max_rows)) as gathered:
            for rows, (image, text) in gathered:
                ids = self._positives(*rows)
                yield Batch(image, text, None if ids is None else torch.from_numpy(ids).to(image.device))

    def _rows(self, mine: np.ndarray, captions: np.ndarray) -> PairRows:
        return self._pairs.vision_rows[mine], captions[mine]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the pairs in an epoch, and (N,) language rows of the drawn captions."""
        generator = np.random.default_rng([self._seed, epoch])
        shuffled = generator.permutation(len(self._pairs))
        captions = _draw(self._pairs, generator)
        if self._order == "parts":
            shuffled = self._by_parts(shuffled, generator)
        return shuffled, captions

    def _by_parts(self, shuffled: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Orders pairs so that each batch takes equally many from each of `_STREAMS` streams of shuffled parts."""
        vision = self._pairs.vision
        places = generator.permutation(len(vision.manifest.parts))
        in_line = shuffled[np.argsort(places[vision.part_of(self._pairs.vision_rows[shuffled])], kind="stable")]
        steps, size = self.steps_per_epoch, self.global_batch_size
        bounds = [size * stream // _STREAMS for stream in range(_STREAMS + 1)]
        streams = [in_line[steps * a : steps * b].reshape(steps, b - a) for a, b in pairwise(bounds)]
        return np.concatenate(streams, axis=1).reshape(-1)

    def _chosen(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epochs(epoch)[0][index * self.global_batch_size :][: self.global_batch_size]

    def _captions(self, step: int) -> np.ndarray:
        return self._epochs(step // self.steps_per_epoch)[1]

    def _positives(self, vision_rows: np.ndarray, captions: np.ndarray) -> np.ndarray | None:
        if self._text_ids is not None:
            return self._text_ids[captions]
        return None if self._label_ids is None else self._label_ids[vision_rows]


def _slice(chosen: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    return chosen[len(chosen) * rank // world_size : len(chosen) * (rank + 1) // world_size]


def _draw(pairs: Pairs, generator: np.random.Generator) -> np.ndarray:
    counts = np.diff(pairs.caption_start)
    return pairs.caption_rows[pairs.caption_start[:-1] + (generator.random(len(pairs)) * counts).astype(np.int64)]


def _ids(values: np.ndarray) -> np.ndarray:
    """(N,) int64 ids, equal for equal `values`."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _label_ids(pairs: Pairs) -> np.ndarray:
    """(N,) int64 label ids of the vision set's rows; an unlabelled row has a unique id."""
    labels = pairs.vision.labels
    missing = np.isnan(labels)
    if missing.all():
        raise RequestError(f"`alignment.positives` is label, but {pairs.vision.uri} has no labels: use text or pair")
    return np.where(missing, -1 - np.arange(len(labels)), np.nan_to_num(labels)).astype(np.int64)
