"""Which pairs make each step's global batch: the same on any number of workers, and after any interruption."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import cycle
from typing import Literal

import numpy as np
import torch

from sharelock_ray.alignment.feeding import RowStore, ahead
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import Pairs


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch: image (n, D_vision) and text (n, D_language) embeddings, of the stored type.

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
        store: of both sets, to be shared by several; without it, one of its own.

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
        store: RowStore | None = None,
    ) -> None:
        self._pairs, self._seed = pairs, seed
        self._store = store or RowStore(pairs.vision, pairs.language, device)
        self._text_ids = _ids(pairs.language.columns["text"]) if positives == "text" else None
        self._label_ids = _label_ids(pairs) if positives == "label" else None
        self.global_batch_size = min(global_batch_size, len(pairs))
        self.steps_per_epoch = max(1, len(pairs) // self.global_batch_size)
        # Two, because a batch is gathered ahead across the end of an epoch.
        self._epochs = lru_cache(maxsize=2)(self._epoch)

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Rank `rank`'s slice of the global batch of `step` (from 0), in memory of its own."""
        mine = self._slice(self._chosen(step), rank, world_size)
        return self._gather(mine, self._captions(step), self._store.buffers(len(mine)))

    def ahead(self, steps: Iterable[int], rank: int, world_size: int) -> Generator[Batch]:
        """As `batch`, for each of `steps`, gathered while the one before is used; each is good until the next."""

        def gathered(step: int, buffers: list[torch.Tensor]) -> Batch:
            return self._gather(self._slice(self._chosen(step), rank, world_size), self._captions(step), buffers)

        return self._fed((partial(gathered, step) for step in steps), -(-self.global_batch_size // world_size))

    def sweep(self, rank: int, world_size: int) -> Generator[Batch]:
        """This rank's slices of every pair once, in order, each with its first caption, in batches of equal size.

        Each is good until the next.
        """
        first = self._pairs.caption_rows[self._pairs.caption_start[:-1]]

        def gathered(chosen: np.ndarray, buffers: list[torch.Tensor]) -> Batch:
            return self._gather(self._slice(chosen, rank, world_size), first, buffers)

        parts = np.array_split(np.arange(len(self._pairs)), self.steps_per_epoch)
        return self._fed((partial(gathered, part) for part in parts), -(-len(parts[0]) // world_size))

    def keys(self, step: int) -> list[str]:
        """Keys of the global batch of `step`, in its order."""
        return list(self._pairs.vision.keys[self._pairs.vision_rows[self._chosen(step)]])

    def _fed(self, work: Iterable[Callable[[list[torch.Tensor]], Batch]], rows: int) -> Generator[Batch]:
        """The batches, of at most `rows` each, that `work` gathers into the buffers that it is given."""
        # One to gather into, one in use.
        slots = cycle([self._store.buffers(rows) for _ in range(2)])
        for batch in ahead(partial(each, next(slots)) for each in work):
            self._store.hand_over((batch.image, batch.text))
            yield batch

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the pairs in an epoch, and the caption drawn for each: (N,) row of the language set."""
        generator = np.random.default_rng([self._seed, epoch])
        return generator.permutation(len(self._pairs)), _draw(self._pairs, generator)

    def _chosen(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epochs(epoch)[0][index * self.global_batch_size :][: self.global_batch_size]

    def _captions(self, step: int) -> np.ndarray:
        return self._epochs(step // self.steps_per_epoch)[1]

    def _slice(self, chosen: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        return chosen[len(chosen) * rank // world_size : len(chosen) * (rank + 1) // world_size]

    def _gather(self, mine: np.ndarray, captions: np.ndarray, buffers: list[torch.Tensor]) -> Batch:
        rows = self._pairs.vision_rows[mine], captions[mine]
        image, text = self._store.gather(rows, buffers)
        ids = self._positives(*rows)
        return Batch(image, text, None if ids is None else torch.from_numpy(ids).to(image.device))

    def _positives(self, vision_rows: np.ndarray, captions: np.ndarray) -> np.ndarray | None:
        if self._text_ids is not None:
            return self._text_ids[captions]
        return None if self._label_ids is None else self._label_ids[vision_rows]


def _draw(pairs: Pairs, generator: np.random.Generator) -> np.ndarray:
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
