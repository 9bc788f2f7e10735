"""Data placement: where feature sets are kept during training, and how batches reach the device.

Both sets are kept on the GPU if they fit. Otherwise they are files mapped into memory, shared by all workers of the
node, and a batch is gathered during the previous step; files larger than memory are read by many threads. Sets that do
not fit the node's disk are streamed part by part from storage (`batches.streaming`).
"""

import ctypes
import mmap
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, TypeVar

import numpy as np
import psutil
import torch

from sharelock_ray.features.cache import cache_folder, room
from sharelock_ray.features.featureset import FeatureSet

# Shares of free memory for features; the rest is for the heads, the optimizer and the step.
_DEVICE_SHARE = 0.6
_HOST_SHARE = 0.8
# A disk serves many reads at once, but each thread waits for one page at a time.
_READERS = 32
_T = TypeVar("_T")

PairRows = tuple[np.ndarray, np.ndarray]
"""Row numbers (n,) of a vision and of a language set: n pairs."""


@dataclass(frozen=True)
class Placement:
    """Where features are kept: on the `device`, in the `host`'s memory, on its `disk`, or in `storage`; and why."""

    kind: Literal["device", "host", "disk", "storage"]
    reason: str


class DeviceCache:
    """Feature sets on a device, kept between the trainings of a process so that each is copied once."""

    def __init__(self) -> None:
        self._tables: dict[str, torch.Tensor] = {}

    def evict_except(self, *sets: FeatureSet) -> None:
        """Evicts all other sets from the device."""
        kept = {features.manifest.digest for features in sets}
        self._tables = {digest: table for digest, table in self._tables.items() if digest in kept}

    def missing_nbytes(self, *sets: FeatureSet) -> int:
        """Bytes of the sets that are not on the device yet."""
        return sum(features.nbytes for features in sets if features.manifest.digest not in self._tables)

    def table(self, features: FeatureSet, device: torch.device) -> torch.Tensor:
        """(N, D) embeddings on the device, copied at first use."""
        digest = features.manifest.digest
        if digest not in self._tables:
            self._tables[digest] = features.embeddings.to(device)
        return self._tables[digest]


def placement(
    vision: FeatureSet, language: FeatureSet, device: torch.device, device_cache: DeviceCache | None = None
) -> Placement:
    """Selects the fastest placement that has room for both sets and for the training itself.

    Args:
        device_cache: sets that are already on the device.
    """
    needed, unmade, free = vision.nbytes + language.nbytes, vision.unmade_nbytes + language.unmade_nbytes, room()
    if unmade > free:
        return Placement("storage", f"{_gb(unmade)} of features, {_gb(free)} free for them in {cache_folder()}")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if (device_cache or DeviceCache()).missing_nbytes(vision, language) <= _DEVICE_SHARE * free:
            return Placement("device", f"{_gb(needed)} of features, {_gb(free)} free on {device}")
    free = psutil.virtual_memory().available
    kind: Literal["host", "disk"] = "host" if needed <= _HOST_SHARE * free else "disk"
    return Placement(kind, f"{_gb(needed)} of features, {_gb(free)} of memory available")


class RowStore(ABC):
    """Gathers rows of a vision and a language set on a device.

    Args:
        device: target of the gathered rows.
    """

    def __init__(self, vision: FeatureSet, language: FeatureSet, device: torch.device, where: Placement) -> None:
        self.device, self.placement = device, where
        self._sets = vision, language
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def gather(
        self, passes: Iterable[Iterable[PairRows]], max_rows: int
    ) -> Generator[tuple[PairRows, list[torch.Tensor]]]:
        """Yields the rows of each batch and their embeddings in both sets, as (n, D) tensors on the device.

        Embeddings have the stored type and are valid until the next batch, which is gathered while they are used.

        Args:
            passes: rows of batches; no row of the vision set occurs twice in a pass.
            max_rows: maximum number of rows per batch.
        """
        # Double buffering.
        slots = cycle([self._buffers(max_rows) for _ in range(2)])
        for rows, found in prefetched(self._gathered(passes, slots)):
            if self._copies is not None:
                for tensor in found:
                    # The tensor was allocated on a different stream from the step's.
                    tensor.record_stream(torch.cuda.current_stream(self.device))
            yield rows, found

    @abstractmethod
    def _selected(
        self, batches: Iterable[PairRows], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[PairRows, list[torch.Tensor]]]:
        """Gathers the rows of each batch of one pass into the next buffers."""

    def _buffers(self, rows: int) -> list[torch.Tensor]:
        """Reusable buffers for `rows` rows of each set."""
        on_device = self.placement.kind == "device"
        return [
            torch.empty(
                (rows, features.manifest.dim),
                dtype=getattr(torch, features.manifest.dtype),
                device=self.device if on_device else "cpu",
                pin_memory=self._copies is not None and not on_device,
            )
            for features in self._sets
        ]

    def _gathered(
        self, passes: Iterable[Iterable[PairRows]], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[PairRows, list[torch.Tensor]]]:
        for batches in passes:
            for rows, found in self._selected(batches, slots):
                yield rows, self._moved(found)

    def _moved(self, found: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._copies is None or self.placement.kind == "device":
            return found
        # A separate stream lets copies overlap with the step.
        with torch.cuda.stream(self._copies):
            found = [rows.to(self.device, non_blocking=True) for rows in found]
        self._copies.synchronize()
        return found


class MappedRows(RowStore):
    """Gathers rows from the node's mapped files, or from their copy on the device, in any order."""

    def __init__(
        self,
        vision: FeatureSet,
        language: FeatureSet,
        device: torch.device,
        where: Placement,
        device_cache: DeviceCache | None = None,
    ) -> None:
        super().__init__(vision, language, device, where)
        if where.kind == "device":
            device_cache = device_cache or DeviceCache()
            self._tables = [device_cache.table(features, device) for features in (vision, language)]
        else:
            self._tables = [vision.embeddings, language.embeddings]
        self._readers = None
        if where.kind == "disk":
            self._readers = ThreadPoolExecutor(_READERS)
            for table in self._tables:
                _expect_random_access(table)

    def _selected(
        self, batches: Iterable[PairRows], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[PairRows, list[torch.Tensor]]]:
        for rows in batches:
            yield rows, [self._select(*each) for each in zip(self._tables, rows, next(slots), strict=True)]

    def _select(self, table: torch.Tensor, rows: np.ndarray, buffer: torch.Tensor) -> torch.Tensor:
        index, out = torch.from_numpy(rows).to(table.device), buffer[: len(rows)]
        if self._readers is None:
            return torch.index_select(table, 0, index, out=out)
        pieces = index.chunk(_READERS), out.chunk(_READERS)
        list(self._readers.map(lambda some, into: torch.index_select(table, 0, some, out=into), *pieces))
        return out


def _expect_random_access(mapped: torch.Tensor) -> None:
    """Disables the kernel's read-ahead of 64 KB per page, for 20 times as many rows per second from a cloud volume."""
    address, size = ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes)
    ctypes.CDLL(None).madvise(address, size, mmap.MADV_RANDOM)


def prefetched(items: Iterable[_T]) -> Generator[_T]:
    """Yields `items` in order; a background thread produces the next item while the current one is used."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        following: Future[_T | object] = pool.submit(next, source, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, source, end)
            yield item  # type: ignore[misc]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
