"""Batches from feature sets in memory, compared with the released code and a bare gather of rows."""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from sharelock_ray.batches.sampling import PairBatches
from sharelock_ray.bench.synthetic import write_pairs
from sharelock_ray.bench.timing import alternate, median_ratio, rate_by_cpu
from sharelock_ray.features.featureset import Pairs, join, open_features

_CPU = torch.device("cpu")
# From the released configuration.
_RELEASED_BATCH = 1024
_STEPS = 8


@dataclass(frozen=True)
class Setting:
    """Batches of `batch_size` out of `pairs` pairs of float16 vision and language embeddings."""

    pairs: int = 40_000
    batch_size: int = 16_384
    vision_dim: int = 1024
    language_dim: int = 768
    files: int = 2048
    """Number of samples for the released code; more samples only take longer to write."""


@dataclass(frozen=True)
class Comparison:
    """Samples per second of CPU time on one thread, per round, and the time to open the sets."""

    setting: Setting
    ours: list[float]
    gather: list[float]
    """`torch.index_select` of as many random rows into reused memory."""
    released: list[float]
    """A DataLoader over one `torch.save` file per sample and feature, in batches of 1,024, without workers."""
    opening: "Opening"

    @property
    def ratio_to_gather(self) -> float:
        return median_ratio(self.ours, self.gather)

    @property
    def ratio_to_released(self) -> float:
        return median_ratio(self.ours, self.released)


@dataclass(frozen=True)
class Opening:
    """Seconds to open both sets: columns, join and embeddings."""

    bytes: int
    """Size of all embeddings."""
    first: float
    first_cpu: float
    """CPU seconds of the first opening, with an empty cache."""
    second: float

    @property
    def bytes_per_cpu_second(self) -> float:
        return self.bytes / self.first_cpu


def compare(setting: Setting, repeats: int) -> Comparison:
    """Writes both forms of the data to a temporary folder and reads batches from them in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder, cache_in(folder):
        uris = write_pairs(folder, setting.pairs, (setting.vision_dim, setting.language_dim))
        pairs, opening = _opened(uris)
        batches = PairBatches(pairs, setting.batch_size, seed=0, device=_CPU)
        released = _Released(_write_files(Path(folder) / "files", pairs, setting.files))
        gather = _Gather(pairs, batches.global_batch_size)
        with closing(batches.prefetch(itertools.count(), 0, 1)) as ours:
            runs = {
                "released": lambda: rate_by_cpu(released.load),
                "gather": lambda: rate_by_cpu(gather.gather),
                "ours": lambda: rate_by_cpu(lambda: sum(len(batch.image) for batch in itertools.islice(ours, _STEPS))),
            }
            # Warm-up: first reads from the disk and first use of new memory are not measured.
            for run in runs.values():
                run()
            found = alternate(runs, repeats)
    torch.set_num_threads(threads)
    return Comparison(setting, found["ours"], found["gather"], found["released"], opening)


def _opened(uris: tuple[str, str]) -> tuple[Pairs, Opening]:
    def opened() -> Pairs:
        pairs = join(*(open_features(uri) for uri in uris))
        assert len(pairs.vision.embeddings) == len(pairs.language.embeddings)
        return pairs

    started, cpu = time.perf_counter(), time.process_time()
    pairs = opened()
    first, first_cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    opened()
    second = time.perf_counter() - started
    return pairs, Opening(pairs.vision.nbytes + pairs.language.nbytes, first, first_cpu, second)


class _Gather:
    """The minimum work of gathering batches from memory."""

    def __init__(self, pairs: Pairs, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._tables = [pairs.vision.embeddings, pairs.language.embeddings]
        self._index = [torch.randint(len(self._tables[0]), (rows,), generator=generator) for _ in range(_STEPS)]
        self._out = [torch.empty((rows, table.shape[1]), dtype=table.dtype) for table in self._tables]

    def gather(self) -> int:
        for index in self._index:
            for table, out in zip(self._tables, self._out, strict=True):
                torch.index_select(table, 0, index, out=out)
        return sum(map(len, self._index))


class _Released(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The released code's dataset: one `torch.save` file per sample and feature."""

    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = (torch.load(file, weights_only=True) for file in self._files[index])
        return image, text

    def load(self) -> int:
        return sum(len(image) for image, _ in DataLoader(self, _RELEASED_BATCH, shuffle=True))


def _write_files(folder: Path, pairs: Pairs, count: int) -> list[tuple[Path, Path]]:
    folder.mkdir()
    files = []
    for i in range(min(count, len(pairs))):
        files.append((folder / f"{i:07d}-image.pt", folder / f"{i:07d}-text.pt"))
        for file, table in zip(files[-1], (pairs.vision.embeddings, pairs.language.embeddings), strict=True):
            torch.save(table[i].clone(), file)
    return files


@contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """Uses a separate node cache below `folder` within the block."""
    before = os.environ.get("SHARELOCK_CACHE")
    os.environ["SHARELOCK_CACHE"] = str(Path(folder) / "cache")
    try:
        yield
    finally:
        del os.environ["SHARELOCK_CACHE"]
        if before is not None:
            os.environ["SHARELOCK_CACHE"] = before
