"""Features larger than memory: random rows from the disk, compared with parts streamed from storage."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sharelock_ray.batches.placement import MappedRows, Placement, RowStore
from sharelock_ray.batches.sampling import PairBatches
from sharelock_ray.batches.streaming import Reader, StreamedRows, read_here
from sharelock_ray.bench.measure_batches import cache_in
from sharelock_ray.bench.synthetic import write_pairs
from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.engine import cluster
from sharelock_ray.engine.feature_reads import read_by_tasks
from sharelock_ray.features.cache import cache_folder
from sharelock_ray.features.featureset import join, open_features

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """An epoch of `pairs` pairs of float16 vision and language embeddings, in parts of 10,000."""

    pairs: int = 163_840
    batch_size: int = 16_384
    vision_dim: int = 1024
    language_dim: int = 4096


@dataclass(frozen=True)
class Comparison:
    """Pairs per second of wall time, per round; no file is in memory at the start of a round."""

    setting: Setting
    disk: list[float]
    """Order `global`: rows of the decoded files, read by many threads."""
    here: list[float]
    """Order `parts`: Parquet parts, decoded by this process."""
    tasks: list[float]
    """Order `parts`: Parquet parts, decoded by Ray Data tasks."""

    @property
    def ratio_here(self) -> float:
        return median_ratio(self.here, self.disk)

    @property
    def ratio_tasks(self) -> float:
        return median_ratio(self.tasks, self.disk)


def compare(setting: Setting, repeats: int) -> Comparison:
    """Writes the features to a temporary folder and reads an epoch of them in each way in turn."""
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder, cache_in(folder), cluster.connected():
        uris = write_pairs(folder, setting.pairs, (setting.vision_dim, setting.language_dim))
        for uri in uris:
            assert len(open_features(uri).embeddings) == setting.pairs
        files = [*Path(folder).rglob("*.parquet"), *cache_folder().rglob("embeddings.bin")]

        def epoch(order: Literal["global", "parts"], read: Reader) -> int:
            pairs = join(*map(open_features, uris))
            sets = pairs.vision, pairs.language
            store: RowStore = MappedRows(*sets, _CPU, Placement("disk", "not in memory"))
            if order == "parts":
                store = StreamedRows(*sets, _CPU, Placement("storage", "as asked"), read)
            batches = PairBatches(pairs, setting.batch_size, seed=0, device=_CPU, order=order, store=store)
            return sum(len(batch.image) for batch in batches.prefetch(range(batches.steps_per_epoch), 0, 1))

        found = alternate(
            {
                "rows from the disk": lambda: _rate(files, lambda: epoch("global", read_here)),
                "parts, this process": lambda: _rate(files, lambda: epoch("parts", read_here)),
                "parts, tasks": lambda: _rate(files, lambda: epoch("parts", read_by_tasks)),
            },
            repeats,
        )
        return Comparison(setting, *found.values())


def _rate(files: list[Path], epoch: Callable[[], int]) -> float:
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    pairs = epoch()
    return pairs / (time.perf_counter() - started)
