"""Rows through a model in forward passes, each as large as the device has memory for."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.errors import RunError

_log = logging.getLogger(__name__)

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """What one or more readings of the same forward passes gave."""

    embeddings: list[np.ndarray]
    """Of each reading (N, D) float32, not normalised; NaN in the rows of `too_large`."""
    too_large: list[int]
    """Rows that do not fit into the device's memory even alone."""

    def only(self) -> np.ndarray:
        """The embeddings of the first reading.

        Raises:
            RunError: a row does not fit into memory.
        """
        if self.too_large:
            raise RunError(f"input {self.too_large[0]} does not fit into the device's memory even alone")
        return self.embeddings[0]


def suited(device: torch.device, cpu: int, gpu: int) -> int:
    """The limit of a forward pass where none is asked for: `gpu` on whatever is no CPU."""
    return cpu if device.type == "cpu" else gpu


class Passes:
    """The forward passes of one model on one device.

    A pass that runs out of memory is cut in two, and no later one is as large again.

    Args:
        device: where tensors go. To a GPU they go from pinned memory, those of the next pass while this one computes.
        limit: how much goes into one pass, in the unit of `cut` (images, or padded tokens).
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.limit = limit
        self.reductions = 0
        """How often memory did not suffice."""
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self,
        rows: int,
        dims: Sequence[int],
        cut: Callable[[Sequence[int], int], Iterable[list[int]]],
        load: Callable[[list[int]], Tensors],
        forward: Callable[..., list[torch.Tensor]],
    ) -> Encoded:
        """Embeds `rows` inputs.

        Args:
            dims: width of each reading.
            cut: rows into batches of at most a limit each, or of one row.
            load: a batch's inputs, on the CPU.
            forward: those inputs, on the device, to each reading's (B, D).
        """
        pending = deque(cut(range(rows), self.limit))
        done: list[int] = []
        results: list[list[torch.Tensor]] = []
        too_large: list[int] = []
        ahead: Tensors | None = None
        while pending:
            batch, result = pending[0], None
            try:
                inputs = self._copied(ahead or self._copy(load(batch)))
                ahead = self._copy(load(pending[1])) if self._copies and len(pending) > 1 else None
                result = forward(*inputs)
            except torch.OutOfMemoryError:
                # The memory is free only once this block, which holds the failed pass by its traceback, has ended.
                ahead = None
            inputs = ()
            if result is not None:
                done += pending.popleft()
                # A token out of a batch is a view that would keep all tokens in memory.
                results.append([values.contiguous() for values in result])
                continue
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if len(batch) == 1:
                too_large += pending.popleft()
            else:
                self._reduce(batch, cut)
                pending = deque(cut([row for each in pending for row in each], self.limit))
        embeddings = [np.full((rows, dim), np.nan, np.float32) for dim in dims]
        for i, values in enumerate(embeddings if results else []):
            # Not before all are under way, since the copy waits for the device.
            values[done] = torch.cat([result[i] for result in results]).float().cpu().numpy()
        return Encoded(embeddings, sorted(too_large))

    def _reduce(self, batch: list[int], cut: Callable[[Sequence[int], int], Iterable[list[int]]]) -> None:
        """Halves the limit until it cuts `batch`."""
        while len(list(cut(batch, self.limit))) == 1:
            self.limit //= 2
        self.reductions += 1
        _log.warning("out of memory on %s: at most %d in a forward pass from now on", self._device, self.limit)

    def _copy(self, tensors: Tensors) -> Tensors:
        if self._copies is None:
            return tuple(tensor.to(self._device) for tensor in tensors)
        with torch.cuda.stream(self._copies):
            return tuple(tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors)

    def _copied(self, tensors: Tensors) -> Tensors:
        """The same tensors, which the device's next work now waits for."""
        if self._copies is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._copies)
            for tensor in tensors:
                # Their memory is of the other stream, which must not reuse it before this one has read it.
                tensor.record_stream(stream)
        return tensors
