"""Rows through a model in forward passes, each as large as the device has memory for."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sharelock_ray.errors import RunError

_log = logging.getLogger(__name__)
# Before each further try of a single row.
_WAITS_S = (0.5, 2.0, 8.0)

Arrays = tuple[np.ndarray, ...]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """What one or more readings of the same forward passes gave."""

    embeddings: list[np.ndarray]
    """Of each reading (N, D) float32, not normalised; NaN in the rows of `too_large`."""
    too_large: list[int]
    """Rows that do not fit into the device's memory even alone."""
    seconds: float
    """That the device was at work on it."""
    batch_reductions: int
    """How often passes were made smaller for want of memory."""
    unknown: dict[int, str] = field(default_factory=dict)
    """Of texts: rows with a token that the model has no embedding of, and that token; their embeddings are NaN."""
    tokens: int = 0
    """Of texts: what was read, each text once."""
    truncated: int = 0
    """Of texts: those that lost their end."""

    def only(self) -> np.ndarray:
        """The embeddings of the first reading.

        Raises:
            RunError: a row does not fit into memory, or has a token that the model does not know.
        """
        if self.too_large:
            raise RunError(f"input {self.too_large[0]} does not fit into the device's memory even alone")
        for row, token in self.unknown.items():
            raise RunError(f"input {row} has the token {token!r}, of which the model has no embedding")
        return self.embeddings[0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory did not suffice: torch, its libraries and its compiler each say so in their own way."""
    said = str(error).lower()
    known = ("out of memory", "_status_alloc_failed", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(each in said for each in known)


def suited(device: torch.device, cpu: int, gpu: int) -> int:
    """The limit of a forward pass where none is asked for: `gpu` on whatever is no CPU."""
    return cpu if device.type == "cpu" else gpu


class _Turns:
    """Of the threads of a process: one at a time sends its passes to the device, whose memory is counted on for one.

    The next begins while the device is still at the last pass of the one before, so that it never waits for either.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._counting = threading.Lock()
        self._counted = 0.0

    def seconds_since(self, begun: float) -> float:
        """From `begun` to now, without what was counted before."""
        with self._counting:
            now = time.perf_counter()
            seconds = now - max(begun, self._counted)
            self._counted = now
            return seconds


_turns = _Turns()


class Passes:
    """The forward passes of one model on one device.

    A pass that runs out of memory is cut in two, and no later one is as large again. One of a single row is tried again
    for a while, since the memory may be a neighbour's on the same device.

    Args:
        device: where arrays go. To a GPU they go from pinned memory, those of the next pass while this one computes.
        limit: how much goes into one pass, in the unit of `cut` (images, or padded tokens).
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.limit = limit
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self,
        rows: int,
        dims: Sequence[int],
        cut: Callable[[Sequence[int], int], Iterable[list[int]]],
        load: Callable[[list[int]], Arrays],
        forward: Callable[..., list[torch.Tensor]],
        smallest: Arrays,
    ) -> Encoded:
        """Embeds `rows` inputs.

        Args:
            dims: width of each reading.
            cut: rows into batches of at most a limit each, or of one row.
            load: a batch's inputs.
            forward: those inputs, on the device, to each reading's (B, D).
            smallest: inputs of the smallest pass. A row is too large only where these fit.

        Raises:
            RunError: not even the smallest pass fits into the device's memory.
        """
        with _turns.turn:
            begun = time.perf_counter()
            done, results, too_large, reductions = self._passed(rows, cut, load, forward, smallest)
            # Not before all are under way, since the copy waits for the device.
            fetched = [_Fetched(torch.cat([result[i] for result in results])) for i in range(len(dims)) if results]
        embeddings = [np.full((rows, dim), np.nan, np.float32) for dim in dims]
        for values, of in zip(embeddings, fetched, strict=False):
            values[done] = of.wait()
        return Encoded(embeddings, sorted(too_large), _turns.seconds_since(begun), reductions)

    def _passed(
        self,
        rows: int,
        cut: Callable[[Sequence[int], int], Iterable[list[int]]],
        load: Callable[[list[int]], Arrays],
        forward: Callable[..., list[torch.Tensor]],
        smallest: Arrays,
    ) -> tuple[list[int], list[list[torch.Tensor]], list[int], int]:
        """Rows in the order of their passes, what each pass gave, rows that are too large, and reductions."""
        pending = deque(cut(range(rows), self.limit))
        done: list[int] = []
        results: list[list[torch.Tensor]] = []
        too_large: list[int] = []
        reductions = 0
        ahead: Tensors | None = None
        waits = list(_WAITS_S)
        while pending:
            batch, result = pending[0], None
            try:
                inputs = self._copied(ahead or self._copy(load(batch)))
                ahead = self._copy(load(pending[1])) if self._copies and len(pending) > 1 else None
                result = forward(*inputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # The memory is free only once this block, which holds the failed pass by its traceback, has ended.
                ahead = None
            inputs = ()
            if result is not None:
                waits = list(_WAITS_S)
                done += pending.popleft()
                # A token out of a batch is a view that would keep all tokens in memory.
                results.append([values.contiguous() for values in result])
                continue
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if len(batch) == 1 and waits:
                time.sleep(waits.pop(0))
            elif len(batch) == 1:
                self._require_memory(forward, smallest)
                too_large += pending.popleft()
            else:
                self._reduce(batch, cut)
                reductions += 1
                pending = deque(cut([row for each in pending for row in each], self.limit))
        return done, results, too_large, reductions

    def _require_memory(self, forward: Callable[..., list[torch.Tensor]], smallest: Arrays) -> None:
        """Ends the run where the memory is gone for other reasons than an input's size."""
        try:
            forward(*self._copied(self._copy(smallest)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"the memory of {self._device} does not suffice for a single input of any size: end what else uses "
                f"it, or take a larger device, then run again"
            ) from None

    def _reduce(self, batch: list[int], cut: Callable[[Sequence[int], int], Iterable[list[int]]]) -> None:
        """Halves the limit until it cuts `batch`."""
        while len(list(cut(batch, self.limit))) == 1:
            self.limit //= 2
        _log.warning("out of memory on %s: at most %d in a forward pass from now on", self._device, self.limit)

    def _copy(self, arrays: Arrays) -> Tensors:
        if self._copies is None:
            return tuple(torch.tensor(array) for array in arrays)
        with torch.cuda.stream(self._copies):
            return tuple(_pinned(array).to(self._device, non_blocking=True) for array in arrays)

    def _copied(self, tensors: Tensors) -> Tensors:
        """The same tensors, which the device's next work now waits for."""
        if self._copies is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._copies)
            for tensor in tensors:
                # Their memory is of the other stream, which must not reuse it before this one has read it.
                tensor.record_stream(stream)
        return tensors


def _pinned(array: np.ndarray) -> torch.Tensor:
    like = torch.from_numpy(np.empty(0, array.dtype))
    pinned = torch.empty(array.shape, dtype=like.dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned


class _Fetched:
    """A tensor's values on their way from the device to memory, as float32."""

    def __init__(self, values: torch.Tensor) -> None:
        values = values.float()
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        self._host = values
        if self._arrived is not None:
            self._host = torch.empty(values.shape, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived.record()

    def wait(self) -> np.ndarray:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()
