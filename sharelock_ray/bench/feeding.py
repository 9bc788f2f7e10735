"""Feeding of batches from feature sets, against what the released code does and against a bare gather of rows."""

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
# Of the released configuration.
_RELEASED_BATCH = 1024
_STEPS = 8


@dataclass(frozen=True)
class Setting:
    """What is measured: batches of `batch_size` of `pairs` pairs of a vision and a language embedding, float16."""

    pairs: int = 40_000
    batch_size: int = 16_384
    vision_dim: int = 1024
    language_dim: int = 768
    files: int = 2048
    """Samples of the released path; more change nothing but the time to write them."""


@dataclass(frozen=True)
class Comparison:
    """Samples per second of CPU time on one thread, of each round; and what opening the sets took."""

    setting: Setting
    ours: list[float]
    gather: list[float]
    """`torch.index_select` of the same number of random rows into memory that is used again."""
    released: list[float]
    """A DataLoader over a `torch.save` file for each sample and feature, in batches of 1,024, without workers."""
    opening: "Opening"

    @property
    def ratio_to_gather(self) -> float:
        return median_ratio(self.ours, self.gather)

    @property
    def ratio_to_released(self) -> float:
        return median_ratio(self.ours, self.released)


@dataclass(frozen=True)
class Opening:
    """Seconds until both sets, their columns, their join and their embeddings are there."""

    bytes: int
    """Of all embeddings."""
    first: float
    first_cpu: float
    """CPU seconds, where this node has nothing of the sets yet."""
    second: float

    @property
    def bytes_per_cpu_second(self) -> float:
        return self.bytes / self.first_cpu


def compare(setting: Setting, repeats: int) -> Comparison:
    """Writes both forms of the data into a temporary folder, and feeds from them in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder, cache_in(folder):
        uris = write_pairs(folder, setting.pairs, (setting.vision_dim, setting.language_dim))
        pairs, opening = _opened(uris)
        batches = PairBatches(pairs, setting.batch_size, seed=0, device=_CPU)
        released = _Released(_write_files(Path(folder) / "files", pairs, setting.files))
        gather = _Gather(pairs, batches.global_batch_size)
        with closing(batches.ahead(itertools.count(), 0, 1)) as ours:
            runs = {
                "released": lambda: rate_by_cpu(released.feed),
                "gather": lambda: rate_by_cpu(gather.feed),
                "ours": lambda: rate_by_cpu(lambda: sum(len(batch.image) for batch in itertools.islice(ours, _STEPS))),
            }
            # What is not measured: reading the files from the disk, and touching new memory, for the first time.
            for feed in runs.values():
                feed()
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
    """The least that any feeding from memory can do."""

    def __init__(self, pairs: Pairs, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._tables = [pairs.vision.embeddings, pairs.language.embeddings]
        self._index = [torch.randint(len(self._tables[0]), (rows,), generator=generator) for _ in range(_STEPS)]
        self._out = [torch.empty((rows, table.shape[1]), dtype=table.dtype) for table in self._tables]

    def feed(self) -> int:
        for index in self._index:
            for table, out in zip(self._tables, self._out, strict=True):
                torch.index_select(table, 0, index, out=out)
        return sum(map(len, self._index))


class _Released(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """As the released code feeds: a file for each sample and feature, that `torch.save` has written."""

    def __init__(self, files: list[tuple[Path, Path]]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = (torch.load(file, weights_only=True) for file in self._files[index])
        return image, text

    def feed(self) -> int:
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
    """A node's cache of the benchmark's own, for the time of the block."""
    before = os.environ.get("SHARELOCK_CACHE")
    os.environ["SHARELOCK_CACHE"] = str(Path(folder) / "cache")
    try:
        yield
    finally:
        del os.environ["SHARELOCK_CACHE"]
        if before is not None:
            os.environ["SHARELOCK_CACHE"] = before
