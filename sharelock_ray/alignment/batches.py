"""Which pairs make each step's global batch: the same on any number of workers, and after any interruption."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import Pairs


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, as float32: image (n, D_vision) and text (n, D_language) embeddings.

    Pairs with equal ids in `positives`, (n,) int64, belong together; without it, each image and its own text alone.
    """

    image: torch.Tensor
    text: torch.Tensor
    positives: torch.Tensor | None = None


def split_validation(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """Training and validation pairs. A key's side follows from its hash alone, so more data never moves it."""
    held = pairs.vision.columns["key_hash"][pairs.vision_rows] < int(fraction * 2**32)
    return pairs.select(~held), pairs.select(held)


class PairBatches:
    """Global batches drawn without replacement within an epoch.

    The order of an epoch is a permutation from (seed, epoch), of which each rank takes its slice. What does not fill
    a batch at an epoch's end is left out of that epoch: a smaller batch would be an easier contrast. Of several
    captions of an image one is drawn for each epoch.

    Args:
        pairs: of which there may be fewer than a batch; then each epoch is one batch of all of them.
        positives: what makes pairs belong together (see `AlignmentSpec.positives`).

    Raises:
        RequestError: labels are asked for, and the vision set has none.
    """

    def __init__(
        self,
        pairs: Pairs,
        global_batch_size: int,
        seed: int,
        device: torch.device,
        positives: Literal["pair", "text", "label"] = "pair",
    ) -> None:
        self._pairs, self._seed, self._device = pairs, seed, device
        self._text_ids = _ids(pairs.language.columns["text"]) if positives == "text" else None
        self._label_ids = _label_ids(pairs) if positives == "label" else None
        self.global_batch_size = min(global_batch_size, len(pairs))
        self.steps_per_epoch = max(1, len(pairs) // self.global_batch_size)
        self._epoch = -1
        self._order = self._captions = np.empty(0, np.int64)

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Rank `rank`'s slice of the global batch of `step` (from 0)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            generator = np.random.default_rng([self._seed, epoch])
            self._order = generator.permutation(len(self._pairs))
            self._captions = _draw(self._pairs, generator)
        return self._rows(self._order[index * self.global_batch_size :][: self.global_batch_size], rank, world_size)

    def sweep(self, rank: int, world_size: int) -> Iterator[Batch]:
        """This rank's slices of every pair once, in order, each with its first caption, in batches of equal size."""
        self._captions, self._epoch = self._pairs.caption_rows[self._pairs.caption_start[:-1]], -1
        for rows in np.array_split(np.arange(len(self._pairs)), self.steps_per_epoch):
            yield self._rows(rows, rank, world_size)

    def _rows(self, chosen: np.ndarray, rank: int, world_size: int) -> Batch:
        mine = chosen[len(chosen) * rank // world_size : len(chosen) * (rank + 1) // world_size]
        image = self._pairs.vision.embeddings[torch.from_numpy(self._pairs.vision_rows[mine])]
        text = self._pairs.language.embeddings[torch.from_numpy(self._captions[mine])]
        ids = self._positives(mine)
        return Batch(
            image.to(self._device, torch.float32),
            text.to(self._device, torch.float32),
            None if ids is None else torch.from_numpy(ids).to(self._device),
        )

    def _positives(self, mine: np.ndarray) -> np.ndarray | None:
        if self._text_ids is not None:
            return self._text_ids[self._captions[mine]]
        return None if self._label_ids is None else self._label_ids[self._pairs.vision_rows[mine]]


def _draw(pairs: Pairs, generator: np.random.Generator) -> np.ndarray:
    """(N,) row of the language set: one caption of each pair."""
    counts = np.diff(pairs.caption_start)
    return pairs.caption_rows[pairs.caption_start[:-1] + (generator.random(len(pairs)) * counts).astype(np.int64)]


def _ids(values: np.ndarray) -> np.ndarray:
    """(N,) int64: equal where `values` are."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _label_ids(pairs: Pairs) -> np.ndarray:
    """(rows of the vision set,) int64 labels; a row without one has an id of its own."""
    labels = pairs.vision.columns["label"].astype(np.float64)
    missing = np.isnan(labels)
    if missing.all():
        raise RequestError(f"`alignment.positives` is label, but {pairs.vision.uri} has no labels: use text or pair")
    return np.where(missing, -1 - np.arange(len(labels)), np.nan_to_num(labels)).astype(np.int64)
