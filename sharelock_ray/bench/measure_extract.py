"""Extraction of images from tars to Parquet, compared with a plain loop and with a webdataset DataLoader."""

import io
import multiprocessing
import os
import shutil
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from PIL import Image

from sharelock_ray import storage
from sharelock_ray.bench.models import random_vision
from sharelock_ray.bench.timing import DType, alternate, median_ratio
from sharelock_ray.demo.tars import tar_of
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.machine import cpu_count

if TYPE_CHECKING:
    from sharelock_ray.engine.extraction import ExtractionJob
    from sharelock_ray.engine.extraction_options import ExtractionOptions

_DISTINCT = 256
_BATCH = 64


@dataclass(frozen=True)
class Setting:
    """`images` in tars of `per_tar`, encoded by a timm model with random weights.

    Uses `threads` CPUs; with a GPU, the pipeline also decodes on all other CPUs.
    """

    images: int
    threads: int
    model: str = "test_vit"
    image_size: int = 160
    dtype: DType = "float32"
    device: str = "cpu"
    per_tar: int = 1000
    width: int = 400
    height: int = 300

    @property
    def cpus(self) -> int:
        """Number of CPUs of the pipeline, and of workers of the DataLoader."""
        return self.threads if self.device == "cpu" else cpu_count()


@dataclass(frozen=True)
class Comparison:
    """Images per second after the warm-up, per round, and the pipeline's start time and memory.

    Rates per CPU second count the CPU time of all processes, so idle cores do not count.
    """

    setting: Setting
    pipeline: list[float]
    loop: list[float]
    """One process that reads, decodes and encodes in turn."""
    webdataset: list[float]
    """A DataLoader with one worker per CPU of the pipeline, and a process that encodes its batches."""
    pipeline_per_cpu: list[float]
    loop_per_cpu: list[float]
    webdataset_per_cpu: list[float]
    spilled_bytes: int
    """Bytes written to disk by Ray's object store, over all rounds."""
    start_seconds: float
    """Median time from the call to the first chunk on a running Ray: start of actors and model."""
    driver_bytes: int
    worker_bytes: int
    """Peak private memory of the driver and of the largest worker."""

    @property
    def ratios(self) -> dict[str, float]:
        """Median ratios of the pipeline's rate to those of the loop and the DataLoader, by name."""
        return {
            "to_loop": median_ratio(self.pipeline, self.loop),
            "to_loop_per_cpu": median_ratio(self.pipeline_per_cpu, self.loop_per_cpu),
            "to_webdataset": median_ratio(self.pipeline, self.webdataset),
            "to_webdataset_per_cpu": median_ratio(self.pipeline_per_cpu, self.webdataset_per_cpu),
        }


def compare(setting: Setting, repeats: int) -> Comparison:
    """Runs all three in turn, each in its own process, over the same tars in a temporary folder.

    Raises:
        RequestError: webdataset is not installed.
    """
    if find_spec("webdataset") is None:
        raise RequestError(
            "`sharelock bench extract` compares with webdataset, which is missing: pip install webdataset"
        )
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        write_tars(Path(folder), setting)
        spec = random_vision(Path(folder), setting.model, setting.image_size, dtype=setting.dtype)
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(1, context, _begin_pipeline) as pipeline,
            ProcessPoolExecutor(1, context, _begin_loop, (setting.threads,)) as loop,
            ProcessPoolExecutor(1, context, _begin_loop, (setting.threads,)) as loader,
        ):
            taken: list[_Taken] = []
            per_cpu: dict[str, list[float]] = {"loop": [], "webdataset": []}

            def run_pipeline() -> float:
                taken.append(pipeline.submit(_pipeline, folder, setting, spec).result())
                return taken[-1].rates.per_second

            def run(name: str, process: ProcessPoolExecutor, work: Callable[..., Rates]) -> float:
                rates = process.submit(work, folder, setting, spec).result()
                per_cpu[name].append(rates.per_cpu_second)
                return rates.per_second

            runs = {
                "loop": lambda: run("loop", loop, _loop),
                "webdataset": lambda: run("webdataset", loader, _webdataset),
                "pipeline": run_pipeline,
            }
            found = alternate(runs, repeats)
            pipeline.submit(_end_pipeline).result()
    return Comparison(
        setting,
        found["pipeline"],
        found["loop"],
        found["webdataset"],
        [t.rates.per_cpu_second for t in taken],
        per_cpu["loop"],
        per_cpu["webdataset"],
        taken[-1].spilled_bytes,
        statistics.median(t.start_seconds for t in taken),
        max(t.driver_bytes for t in taken),
        max(t.worker_bytes for t in taken),
    )


def write_tars(folder: Path, setting: Setting) -> None:
    """Tars of JPEGs with roughly the detail of photographs: smooth colours with noise."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(min(_DISTINCT, setting.images)):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((setting.width, setting.height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.normal(0, 8, smooth.shape).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    for first in range(0, setting.images, setting.per_tar):
        images = range(first, min(first + setting.per_tar, setting.images))
        content = tar_of((f"{i:09d}.jpg", files[i % _DISTINCT]) for i in images)
        (folder / f"{first // setting.per_tar:05d}.tar").write_bytes(content)


def tar_files(folder: Path) -> Iterator[bytes]:
    """Yields the files in the tars of a folder."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                yield stream.read()


def _begin_loop(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Rates:
    """Samples per second by wall time, and by CPU time of all processes."""

    per_second: float
    per_cpu_second: float


def _loop(folder: str, setting: Setting, spec: VisionSpec) -> Rates:
    """The plain loop: reads a tar, decodes and encodes in batches, and saves once at the end."""
    from sharelock_ray.encoders.images import decode_image
    from sharelock_ray.encoders.vision import VisionEncoder

    encoder = VisionEncoder(spec, setting.device)
    decoded = (decode_image(data, spec.preprocessing) for data in tar_files(Path(folder)))
    batches = iter(lambda: list(islice(decoded, _BATCH)), [])
    return _rates_of(folder, (encoder.encode(np.stack(batch)) for batch in batches))


def _webdataset(folder: str, setting: Setting, spec: VisionSpec) -> Rates:
    """Workers of a DataLoader read and decode; this process encodes their batches and saves once at the end."""
    import webdataset
    from torch.utils.data import DataLoader

    from sharelock_ray.encoders.images import decode_image
    from sharelock_ray.encoders.vision import VisionEncoder

    encoder = VisionEncoder(spec, setting.device)
    urls = sorted(map(str, Path(folder).glob("*.tar")))
    images = (
        webdataset.WebDataset(urls, shardshuffle=False)
        .to_tuple("__key__", "jpg")
        .map_tuple(None, partial(decode_image, preprocessing=spec.preprocessing))
        .batched(_BATCH)
    )
    loader = DataLoader(images, batch_size=None, num_workers=min(setting.cpus, len(urls)))
    return _rates_of(folder, (encoder.encode(pixels.numpy()) for _, pixels in loader))


def _rates_of(folder: str, batches: Iterator[np.ndarray]) -> Rates:
    """Saves the embeddings of all batches as one array; returns the rates after the first batch."""
    embeddings = [next(batches)]
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    embeddings += batches
    np.save(Path(folder) / "embeddings.npy", np.concatenate(embeddings).astype(np.float16))
    count = sum(map(len, embeddings[1:]))
    return Rates(count / (time.perf_counter() - started), count / (_cpu_seconds() - cpu_started))


_stack = ExitStack()


def _begin_pipeline() -> None:
    from sharelock_ray.engine import cluster

    _stack.enter_context(cluster.connected())


def _end_pipeline() -> None:
    _stack.close()


@dataclass(frozen=True)
class _Taken:
    rates: Rates
    start_seconds: float
    driver_bytes: int
    worker_bytes: int
    spilled_bytes: int


def _pipeline(folder: str, setting: Setting, spec: VisionSpec) -> _Taken:
    from sharelock_ray.engine.extraction import ExtractionJob
    from sharelock_ray.engine.extraction_options import ExtractionOptions
    from sharelock_ray.sources.webdataset import WebDatasetSource

    root = str(Path(folder) / "features")
    job = ExtractionJob(
        root, "bench", "train", WebDatasetSource(urls=f"{storage.escape(folder)}/*.tar"), (resolve(spec),)
    )
    # The rate is that after the first chunk, so there must be several.
    chunk_size = min(256, max(1, setting.images // 8))
    options = ExtractionOptions(min_actors=setting.threads, max_actors=setting.threads, chunk_size=chunk_size)
    if setting.device == "cuda":
        options = ExtractionOptions(num_gpus=1, chunk_size=1024)
    with _peak_memory() as peak:
        rates, start_seconds = extraction_rates(job, options)
    shutil.rmtree(root)
    return _Taken(rates, start_seconds, peak.driver, peak.worker, _spilled_bytes())


def extraction_rates(job: "ExtractionJob", options: "ExtractionOptions") -> tuple[Rates, float]:
    """Extracts on a running Ray.

    Returns:
        samples per second after the first chunk, and the seconds until then.
    """
    from sharelock_ray.engine.extraction import extract
    from sharelock_ray.extraction.report import ChunkReport

    news: list[tuple[float, float, int]] = []

    def watch(report: ChunkReport) -> None:
        news.append((time.perf_counter(), _cpu_seconds(), report.samples))

    called = time.perf_counter()
    extract(job, options, watch)
    ended = time.perf_counter()
    warm_at, cpu_warm, _ = news[0]
    count = sum(samples for _, _, samples in news[1:])
    return Rates(count / (ended - warm_at), count / (news[-1][1] - cpu_warm)), warm_at - called


def _cpu_seconds() -> float:
    """CPU time of this process and all its descendants, including ended ones and Ray's."""
    process = psutil.Process(os.getpid())
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            # User and system time, then those of its ended children.
            total += sum(each.cpu_times()[:4])
    return total


def _spilled_bytes() -> int:
    """Bytes spilled since Ray was started."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


@dataclass
class _Peak:
    driver: int = 0
    worker: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        """Samples five times a second until stopped."""
        driver = psutil.Process(os.getpid())
        while not self._stop.wait(0.2):
            self.driver = max(self.driver, _private(driver))
            self.worker = max([self.worker, *map(_private, driver.children(recursive=True))])


@contextmanager
def _peak_memory() -> Iterator[_Peak]:
    """Peak private memory (resident, not shared) of this process and of its largest descendant."""
    peak = _Peak()
    thread = threading.Thread(target=peak.sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak._stop.set()
        thread.join()


def _private(process: psutil.Process) -> int:
    try:
        memory: Any = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)
