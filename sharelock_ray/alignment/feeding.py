"""Where the rows of feature sets lie while they are trained on, and how those of a batch reach the device.

On the GPU where both sets fit; else in the node's memory, as mapped files that all its workers share, from where a
batch is gathered while the step before it is computed; files larger than memory are read by many threads.
"""

import ctypes
import mmap
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import psutil
import torch

from sharelock_ray.features.featureset import FeatureSet

# The rest is for the heads, their optimizer and the step.
_DEVICE_SHARE = 0.6
_HOST_SHARE = 0.8
# A disk answers many reads at a time, but a thread waits for each page that it touches.
_READERS = 32
_T = TypeVar("_T")


@dataclass(frozen=True)
class Placement:
    """Where the rows lie: on the `device`, in the `host`'s memory, or on its `disk`; `reason` gives the sizes."""

    kind: Literal["device", "host", "disk"]
    reason: str


def placement(needed: int, device: torch.device) -> Placement:
    """The fastest place that holds `needed` bytes beside the training itself, by what is free now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if needed <= _DEVICE_SHARE * free:
            return Placement("device", f"{_gb(needed)} of features, {_gb(free)} free on {device}")
    free = psutil.virtual_memory().available
    kind: Literal["host", "disk"] = "host" if needed <= _HOST_SHARE * free else "disk"
    return Placement(kind, f"{_gb(needed)} of features, {_gb(free)} of memory available")


class RowStore:
    """Gathers rows of a vision and a language set on a device.

    Args:
        device: that the gathered rows are wanted on.
    """

    def __init__(self, vision: FeatureSet, language: FeatureSet, device: torch.device) -> None:
        self.device = device
        self.placement = placement(vision.nbytes + language.nbytes, device)
        self._tables = [vision.embeddings, language.embeddings]
        if self.placement.kind == "device":
            self._tables = [table.to(device) for table in self._tables]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._readers = None
        if self.placement.kind == "disk":
            self._readers = ThreadPoolExecutor(_READERS)
            for table in self._tables:
                _expect_random_access(table)

    def buffers(self, rows: int) -> list[torch.Tensor]:
        """Memory for `rows` rows of each set, that `gather` can use again and again."""
        pinned = self._copies is not None and self.placement.kind != "device"
        return [
            torch.empty((rows, t.shape[1]), dtype=t.dtype, device=t.device, pin_memory=pinned) for t in self._tables
        ]

    def gather(self, rows: tuple[np.ndarray, np.ndarray], buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """(n, D) of the stored type on the device, for the n row numbers of each set.

        On a CPU the result is in `buffers`, and spoiled by the next use of them.
        """
        found = []
        for table, chosen, buffer in zip(self._tables, rows, buffers, strict=True):
            index = torch.from_numpy(chosen).to(table.device)
            found.append(self._selected(table, index, buffer[: len(chosen)]))
        if self._copies is None or self.placement.kind == "device":
            return found
        # On a stream of their own, so that the copies run beside the step.
        with torch.cuda.stream(self._copies):
            found = [rows.to(self.device, non_blocking=True) for rows in found]
        self._copies.synchronize()
        return found

    def _selected(self, table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self._readers is None:
            return torch.index_select(table, 0, index, out=out)
        pieces = index.chunk(_READERS), out.chunk(_READERS)
        list(self._readers.map(lambda rows, into: torch.index_select(table, 0, rows, out=into), *pieces))
        return out

    def hand_over(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tells the allocator that the step uses what was copied on another stream."""
        if self._copies is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))


def _expect_random_access(mapped: torch.Tensor) -> None:
    """Has the kernel read the pages of a row, and not the 64 KB around each: 20 times the rows of a cloud volume."""
    address, size = ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes)
    ctypes.CDLL(None).madvise(address, size, mmap.MADV_RANDOM)


def ahead(work: Iterable[Callable[[], _T]]) -> Generator[_T]:
    """What each of `work` returns, in order; one is done in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[_T] | None = None
        for each in work:
            following = pool.submit(each)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
