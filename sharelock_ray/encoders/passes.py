"""Runs rows through a model in forward passes that fit the device's memory."""

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
# Waits before each retry of a single row.
_WAITS_S = (0.5, 2.0, 8.0)

Arrays = tuple[np.ndarray, ...]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Encoded:
    """The embeddings that one or more encoders read from the same forward passes."""

    embeddings: list[np.ndarray]
    """One array per encoder: (N, D) float32, not normalised; NaN in the rows of `too_large` and `unknown`."""
    too_large: list[int]
    """Rows that do not fit into the device's memory, even alone."""
    seconds: float
    """Busy time of the device."""
    batch_reductions: int
    """How often the batch size was reduced after an out-of-memory error."""
    unknown: dict[int, str] = field(default_factory=dict)
    """Texts only: rows with a token for which the model has no embedding, and that token."""
    tokens: int = 0
    """Texts only: tokens read; equal texts count once."""
    truncated: int = 0
    """Texts only: number of truncated texts."""

    def only(self) -> np.ndarray:
        """Returns the embeddings of the first encoder.

        Raises:
            RunError: a row does not fit into memory, or has a token for which the model has no embedding.
        """
        if self.too_large:
            raise RunError(f"input {self.too_large[0]} does not fit into the device's memory, even alone")
        for row, token in self.unknown.items():
            raise RunError(f"input {row} has the token {token!r}, for which the model has no embedding")
        return self.embeddings[0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means out of memory; torch, its libraries and its compiler report it in different ways."""
    said = str(error).lower()
    known = ("out of memory", "_status_alloc_failed", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(each in said for each in known)


def suited(device: torch.device, cpu: int, gpu: int) -> int:
    """The default limit of a forward pass: `cpu` on a CPU, `gpu` on any other device."""
    return cpu if device.type == "cpu" else gpu


class _Turns:
    """Lets one thread at a time send passes to the device, so that the memory is enough.

    The next thread starts while the device still runs the last pass of the previous one; the device never idles.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._counting = threading.Lock()
        self._counted = 0.0

    def seconds_since(self, begun: float) -> float:
        """Seconds from `begun` to now, less the time that was counted before."""
        with self._counting:
            now = time.perf_counter()
            seconds = now - max(begun, self._counted)
            self._counted = now
            return seconds


_turns = _Turns()


class Passes:
    """The forward passes of one model on one device.

    After an out-of-memory error the limit is halved, also for all later passes. A pass of a single row is retried for
    a while, because another process may hold the memory.

    Args:
        device: where the model runs. Arrays go to a GPU from pinned memory; the copy of the next pass overlaps the
            computation of the current one.
        limit: size of one pass, in the unit of `cut` (images or padded tokens).
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
            dims: embedding width of each encoder.
            cut: splits rows into batches of at most the given limit, or of one row.
            load: returns the inputs of a batch.
            forward: maps inputs on the device to one (B, D) tensor per encoder.
            smallest: inputs of the smallest pass. A row counts as too large only if these fit.

        Raises:
            RunError: not even the smallest pass fits into the device's memory.
        """
        with _turns.turn:
            begun = time.perf_counter()
            done, results, too_large, reductions = self._passed(rows, cut, load, forward, smallest)
            # Last, because the copy waits for the device.
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
        """Returns rows in the order of their passes, results by pass, rows that are too large, and reductions."""
        pending = deque(cut(range(rows), self.limit))
        done: list[int] = []
        results: list[list[torch.Tensor]] = []
        too_large: list[int] = []
        reductions = 0
        prefetched: Tensors | None = None
        waits = list(_WAITS_S)
        while pending:
            batch, result = pending[0], None
            try:
                inputs = self._copied(prefetched or self._copy(load(batch)))
                prefetched = self._copy(load(pending[1])) if self._copies and len(pending) > 1 else None
                result = forward(*inputs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # The traceback holds the memory of the failed pass until this block ends.
                prefetched = None
            inputs = ()
            if result is not None:
                waits = list(_WAITS_S)
                done += pending.popleft()
                # A slice of one token is a view, which would keep all tokens in memory.
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
        """Raises RunError if even the smallest pass does not fit, so the input's size is not the cause."""
        try:
            forward(*self._copied(self._copy(smallest)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"out of memory on {self._device}, even for the smallest input: end other programs that use it, "
                f"or use a larger device, then run again"
            ) from None

    def _reduce(self, batch: list[int], cut: Callable[[Sequence[int], int], Iterable[list[int]]]) -> None:
        """Halves the limit until it cuts `batch`."""
        while len(list(cut(batch, self.limit))) == 1:
            self.limit //= 2
        _log.warning("out of memory on %s: at most %d per forward pass from now on", self._device, self.limit)

    def _copy(self, arrays: Arrays) -> Tensors:
        if self._copies is None:
            return tuple(torch.tensor(array) for array in arrays)
        with torch.cuda.stream(self._copies):
            return tuple(_pinned(array).to(self._device, non_blocking=True) for array in arrays)

    def _copied(self, tensors: Tensors) -> Tensors:
        """Returns the same tensors after the device's current stream was told to wait for their copy."""
        if self._copies is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._copies)
            for tensor in tensors:
                # The copy stream owns this memory and must not reuse it before the current stream has read it.
                tensor.record_stream(stream)
        return tensors


def _pinned(array: np.ndarray) -> torch.Tensor:
    like = torch.from_numpy(np.empty(0, array.dtype))
    pinned = torch.empty(array.shape, dtype=like.dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned


class _Fetched:
    """An asynchronous copy of a tensor from the device to host memory, as float32."""

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
