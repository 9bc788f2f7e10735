"""Where the rows of feature sets lie while they are trained on, and how those of a batch reach the device.

On the GPU where both sets fit; else in the node's memory, as mapped files that all its workers share, from where a
batch is gathered while the step before it is computed; files larger than memory are read by many threads; and what no
disk of the node holds is read part by part from storage (`batches.streaming`).
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

# The rest is for the heads, their optimizer and the step.
_DEVICE_SHARE = 0.6
_HOST_SHARE = 0.8
# A disk answers many reads at a time, but a thread waits for each page that it touches.
_READERS = 32
_T = TypeVar("_T")

Rows = tuple[np.ndarray, np.ndarray]
"""Row numbers (n,) of a vision and of a language set: n pairs."""


@dataclass(frozen=True)
class Placement:
    """Where the rows lie: on the `device`, in the `host`'s memory, on its `disk`, or in `storage`; and why."""

    kind: Literal["device", "host", "disk", "storage"]
    reason: str


class Residents:
    """Feature sets on a device: kept from one training of a process to the next, a set is copied there once."""

    def __init__(self) -> None:
        self._tables: dict[str, torch.Tensor] = {}

    def keep_only(self, *sets: FeatureSet) -> None:
        """Gives the memory of all others back."""
        wanted = {of.manifest.digest for of in sets}
        self._tables = {digest: table for digest, table in self._tables.items() if digest in wanted}

    def missing_nbytes(self, *sets: FeatureSet) -> int:
        """Bytes that these sets would still take."""
        return sum(of.nbytes for of in sets if of.manifest.digest not in self._tables)

    def table(self, of: FeatureSet, device: torch.device) -> torch.Tensor:
        """(N, D) embeddings on the device."""
        if of.manifest.digest not in self._tables:
            self._tables[of.manifest.digest] = of.embeddings.to(device)
        return self._tables[of.manifest.digest]


def placement(
    vision: FeatureSet, language: FeatureSet, device: torch.device, residents: Residents | None = None
) -> Placement:
    """The fastest place that holds both sets beside the training itself, by what is free now.

    Args:
        residents: sets that are on the device already.
    """
    needed, unmade, free = vision.nbytes + language.nbytes, vision.unmade_nbytes + language.unmade_nbytes, room()
    if unmade > free:
        return Placement("storage", f"{_gb(unmade)} of features, {_gb(free)} free for them in {cache_folder()}")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if (residents or Residents()).missing_nbytes(vision, language) <= _DEVICE_SHARE * free:
            return Placement("device", f"{_gb(needed)} of features, {_gb(free)} free on {device}")
    free = psutil.virtual_memory().available
    kind: Literal["host", "disk"] = "host" if needed <= _HOST_SHARE * free else "disk"
    return Placement(kind, f"{_gb(needed)} of features, {_gb(free)} of memory available")


class RowStore(ABC):
    """Gathers rows of a vision and a language set on a device.

    Args:
        device: that the gathered rows are wanted on.
    """

    def __init__(self, vision: FeatureSet, language: FeatureSet, device: torch.device, where: Placement) -> None:
        self.device, self.placement = device, where
        self._sets = vision, language
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def feed(self, passes: Iterable[Iterable[Rows]], at_most: int) -> Generator[tuple[Rows, list[torch.Tensor]]]:
        """For each of the rows, these and (n, D) of the stored type of each set, on the device; good until the next.

        A batch is gathered while the one before it is used.

        Args:
            passes: rows of batches; no row comes twice in a pass.
            at_most: as many rows has a batch.
        """
        # One to gather into, one in use.
        slots = cycle([self._buffers(at_most) for _ in range(2)])
        for rows, found in ahead(self._gathered(passes, slots)):
            if self._copies is not None:
                for tensor in found:
                    # Tells the allocator that the step uses what was copied on another stream.
                    tensor.record_stream(torch.cuda.current_stream(self.device))
            yield rows, found

    @abstractmethod
    def _selected(
        self, batches: Iterable[Rows], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[Rows, list[torch.Tensor]]]:
        """The rows of each batch, put into the buffers that come next, of one pass."""

    def _buffers(self, rows: int) -> list[torch.Tensor]:
        """Memory for `rows` rows of each set, that is used again and again."""
        on_device = self.placement.kind == "device"
        return [
            torch.empty(
                (rows, of.manifest.dim),
                dtype=getattr(torch, of.manifest.dtype),
                device=self.device if on_device else "cpu",
                pin_memory=self._copies is not None and not on_device,
            )
            for of in self._sets
        ]

    def _gathered(
        self, passes: Iterable[Iterable[Rows]], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[Rows, list[torch.Tensor]]]:
        for batches in passes:
            for rows, found in self._selected(batches, slots):
                yield rows, self._moved(found)

    def _moved(self, found: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._copies is None or self.placement.kind == "device":
            return found
        # On a stream of their own, so that the copies run beside the step.
        with torch.cuda.stream(self._copies):
            found = [rows.to(self.device, non_blocking=True) for rows in found]
        self._copies.synchronize()
        return found


class MappedRows(RowStore):
    """Rows of the node's mapped files, in any order, or of their copy on the device."""

    def __init__(
        self,
        vision: FeatureSet,
        language: FeatureSet,
        device: torch.device,
        where: Placement,
        residents: Residents | None = None,
    ) -> None:
        super().__init__(vision, language, device, where)
        if where.kind == "device":
            residents = residents or Residents()
            self._tables = [residents.table(of, device) for of in (vision, language)]
        else:
            self._tables = [vision.embeddings, language.embeddings]
        self._readers = None
        if where.kind == "disk":
            self._readers = ThreadPoolExecutor(_READERS)
            for table in self._tables:
                _expect_random_access(table)

    def _selected(
        self, batches: Iterable[Rows], slots: Iterator[list[torch.Tensor]]
    ) -> Iterator[tuple[Rows, list[torch.Tensor]]]:
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
    """Has the kernel read the pages of a row, and not the 64 KB around each: 20 times the rows of a cloud volume."""
    address, size = ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes)
    ctypes.CDLL(None).madvise(address, size, mmap.MADV_RANDOM)


def ahead(items: Iterable[_T]) -> Generator[_T]:
    """`items`, in order; each is made in a thread while the one before it is used."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        following: Future[_T | object] = pool.submit(next, source, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, source, end)
            yield item  # type: ignore[misc]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
