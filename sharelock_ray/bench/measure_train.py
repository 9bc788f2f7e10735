"""Training steps: their share of the device's own matrix product, by batch size and number of workers."""

import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.alignment.step import Optimization
from sharelock_ray.batches.sampling import Batch
from sharelock_ray.bench.measure_batches import cache_in
from sharelock_ray.bench.measure_encoders import describe as describe
from sharelock_ray.bench.synthetic import write_pairs
from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.memory import keep_freed_memory
from sharelock_ray.progress import say
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train


@dataclass(frozen=True)
class Setting:
    """Steps of `batch_size` pairs over all `workers`, with the paper's head on the text side."""

    batch_size: int
    vision_dim: int = 1024
    language_dim: int = 4096
    depth: int = 4
    width: int = 4096
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int = 1
    """CPUs per worker."""
    workers: int = 1
    accumulation: int = 1
    """Micro-batches per step; with one worker."""
    compiled: bool = False

    @property
    def spec(self) -> AlignmentSpec:
        head = ProjectionSpec(depth=self.depth, width=self.width, dropout=0.2)
        return AlignmentSpec(
            language=head,
            global_batch_size=self.batch_size,
            accumulation=self.accumulation,
            precision=self.precision,
        )

    @property
    def flop(self) -> float:
        """FLOP of the products that a step requires: the head, forward and backward, and the loss.

        Frozen embeddings need no gradient, so the loss has two products: the logits, and the gradient of the texts.
        """
        widths = [self.language_dim, *[self.width] * (self.depth - 1), self.vision_dim]
        layers = [2 * a * b for a, b in itertools.pairwise(widths)]
        head = self.batch_size * (3 * sum(layers) - layers[0])
        return head + 2 * 2 * self.batch_size * self.spec.contrast_size * self.vision_dim


@dataclass(frozen=True)
class Measured:
    """Seconds per step, per round: CPU time of the first worker on a CPU, wall time on a GPU.

    On one thread, CPU time equals the wall time of an idle machine.
    """

    setting: Setting
    seconds: list[float]
    product: list[float]
    """FLOP per second of one bare product of batch x width by width x width, per round; none for several workers."""

    @property
    def flop_per_second(self) -> float:
        """FLOP per second of one worker."""
        return self.setting.flop / self.setting.workers / statistics.median(self.seconds)

    @property
    def share_of_product(self) -> float | None:
        """Median ratio of the step's FLOP rate to the product's."""
        if not self.product:
            return None
        return median_ratio([self.setting.flop / seconds for seconds in self.seconds], self.product)


def step(setting: Setting, repeats: int) -> Measured:
    """Measures a step on one worker and the bare product in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    take, product = _step(setting), _product(setting)
    _seconds(setting, take)
    found = alternate(
        {
            f"step of {setting.batch_size:,}": lambda: _seconds(setting, take),
            "product, TFLOP/s": lambda: _product_flop(setting) / _seconds(setting, product) / 1e12,
        },
        repeats,
    )
    torch.set_num_threads(threads)
    seconds, rates = found.values()
    return Measured(setting, seconds, [rate * 1e12 for rate in rates])


def on_workers(setting: Setting, repeats: int) -> Measured:
    """Measures a step on several local processes over gloo, each with a share of the batch."""
    say(f"bench: {setting.batch_size:,} pairs on {setting.workers} workers")
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder,
        ProcessPoolExecutor(setting.workers, context) as pool,
    ):
        jobs = [pool.submit(_on_rank, rank, setting, repeats, folder) for rank in range(setting.workers)]
        seconds = [job.result() for job in jobs]
        return Measured(setting, seconds[0], [])


@dataclass(frozen=True)
class Comparison:
    """One step compared with the bare product; steps by batch size; and by number of workers."""

    step: Measured
    batches: list[Measured]
    workers: list[Measured]

    @property
    def slope(self) -> float | None:
        """Exponent k of seconds = c batch^k, by least squares of the logarithms; None for one batch size."""
        if len(self.batches) < 2:
            return None
        x = [math.log(measured.setting.batch_size) for measured in self.batches]
        y = [math.log(statistics.median(measured.seconds)) for measured in self.batches]
        return statistics.linear_regression(x, y).slope


def compare(setting: Setting, batches: Sequence[int], width: int, workers: int, repeats: int) -> Comparison:
    """Runs all measurements; comparisons by batch size and workers use a head of `width`."""
    smaller = replace(setting, width=width, accumulation=1)
    counts = range(1, workers + 1) if setting.device == "cpu" else []
    return Comparison(
        step(setting, repeats),
        [step(replace(smaller, batch_size=batch), repeats) for batch in batches],
        [on_workers(replace(smaller, batch_size=max(batches), workers=n), repeats) for n in counts],
    )


@dataclass(frozen=True)
class Run:
    """A whole training, from feature sets on disk to its last checkpoint."""

    setting: Setting
    pairs: int
    steps: int
    placement: str
    open_seconds: float
    """Seconds of the first opening of the sets: decoding and join."""
    seconds: float
    """Seconds of training, including validations and checkpoints."""

    @property
    def flop_per_second(self) -> float:
        return self.setting.flop * self.steps / self.seconds


def whole_run(setting: Setting, pairs: int, steps: int, evaluate_every: int) -> Run:
    """Trains on `pairs` random pairs for `steps` steps and validates every `evaluate_every` steps."""
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder, cache_in(folder):
        uris = write_pairs(folder, pairs, (setting.vision_dim, setting.language_dim))
        spec = setting.spec.model_copy(update={"steps": steps, "evaluate_every": evaluate_every})
        run = RunFolder(str(Path(folder) / "run"))
        started = time.perf_counter()
        train(run, *uris, spec, setting.device, compiled=setting.compiled)
        wall = time.perf_counter() - started
        result = run.result()
        assert result is not None
        return Run(setting, pairs, steps, str(run.data_placement()), wall - result.seconds, result.seconds)


def _step(setting: Setting, rank: int = 0) -> Callable[[], object]:
    if setting.device == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    heads = Heads(setting.spec, setting.vision_dim, setting.language_dim).to(setting.device)
    optimization = Optimization(heads, setting.spec, compiled=setting.compiled)
    size = setting.spec.contrast_size
    rows = size * (rank + 1) // setting.workers - size * rank // setting.workers
    sides = (torch.randn(rows, dim).half().to(setting.device) for dim in (setting.vision_dim, setting.language_dim))
    batch = Batch(*sides)
    return lambda: optimization.step([batch] * setting.accumulation, 0)


def _product(setting: Setting) -> Callable[[], object]:
    dtype = getattr(torch, setting.precision)
    left = torch.randn(setting.batch_size, setting.width, device=setting.device, dtype=dtype)
    right = torch.randn(setting.width, setting.width, device=setting.device, dtype=dtype)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _product_flop(setting: Setting) -> float:
    return 2.0 * setting.batch_size * setting.width**2


def _seconds(setting: Setting, work: Callable[[], object]) -> float:
    clock = time.process_time if setting.device == "cpu" else time.perf_counter
    started = clock()
    work()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def _on_rank(rank: int, setting: Setting, repeats: int, folder: str) -> list[float]:
    torch.set_num_threads(setting.threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=setting.workers)
    try:
        take = _step(setting, rank)
        take()
        return [_seconds(setting, take) for _ in range(repeats)]
    finally:
        dist.destroy_process_group()
