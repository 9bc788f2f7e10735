"""A grid on Ray Tune, compared with a plain loop in one process with as many threads."""

import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.bench.synthetic import write_pairs
from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.config import content_hash
from sharelock_ray.features.featureset import open_features
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trials import Trial


@dataclass(frozen=True)
class Setting:
    """Depths x widths x activations on `pairs` pairs of random features, with `threads` CPUs."""

    threads: int
    pairs: int = 10_000
    dim: int = 384
    steps: int = 60
    batch_size: int = 512
    depths: tuple[int, ...] = (2, 4, 6, 8)
    widths: tuple[int, ...] = (64, 128, 256)
    activations: tuple[str, ...] = ("relu", "gelu", "silu")

    @property
    def trials(self) -> int:
        return len(self.depths) * len(self.widths) * len(self.activations)


@dataclass(frozen=True)
class Comparison:
    """Trials per minute, per round, and the study's start time and memory."""

    setting: Setting
    study: list[float]
    """From the start of the first training to the end of the last trial, including its score."""
    loop: list[float]
    """The trainings only."""
    start_seconds: float
    """Median time from the call to the start of the first training on a running Ray."""
    feature_copies: float
    """Memory of the mapped features in all trial processes, relative to the size of the features: the median while most
    processes trained."""
    processes: int
    """Maximum number of concurrent processes."""

    @property
    def ratio(self) -> float:
        return median_ratio(self.study, self.loop)


def compare(setting: Setting, repeats: int) -> Comparison:
    """Runs both in turn, each in its own process, on the same feature sets in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        os.environ["SHARELOCK_CACHE"] = str(Path(folder) / "cache")
        sets = write_pairs(folder, setting.pairs, (setting.dim, setting.dim))
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(1, context, _begin_study) as study,
            ProcessPoolExecutor(1, context, _begin_loop, (setting.threads,)) as loop,
        ):
            taken: list[_Taken] = []

            def run_study() -> float:
                taken.append(study.submit(_study, folder, setting, sets).result())
                return taken[-1].per_minute

            def run_loop() -> float:
                return float(loop.submit(_loop, folder, setting, sets).result())

            found = alternate({"loop": run_loop, "study": run_study}, repeats)
            study.submit(_end_study).result()
    return Comparison(
        setting,
        found["study"],
        found["loop"],
        statistics.median(each.start_seconds for each in taken),
        max(each.feature_copies for each in taken),
        max(each.processes for each in taken),
    )


def _spec(setting: Setting, point: dict[str, Any]) -> AlignmentSpec:
    return AlignmentSpec.model_validate(
        {
            "language": point,
            "global_batch_size": setting.batch_size,
            "steps": setting.steps,
            "evaluate_every": setting.steps // 2,
            "warmup_steps": 5,
            "validation_fraction": 0.1,
        }
    )


def _space(setting: Setting) -> dict[str, Any]:
    return {"depth": setting.depths, "width": setting.widths, "activation": setting.activations}


def _begin_loop(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _loop(folder: str, setting: Setting, sets: tuple[str, str]) -> float:
    """Trials per minute of the plain loop."""
    from sharelock_ray.runs.loop import train

    runs = Path(folder) / "loop"
    started = time.perf_counter()
    for index, values in enumerate(itertools.product(*_space(setting).values())):
        point = dict(zip(_space(setting), values, strict=True))
        train(RunFolder(str(runs / str(index))), *sets, _spec(setting, point))
    seconds = time.perf_counter() - started
    shutil.rmtree(runs)
    return setting.trials / seconds * 60


_stack = ExitStack()


def _begin_study() -> None:
    from sharelock_ray.engine import cluster

    _stack.enter_context(cluster.connected())


def _end_study() -> None:
    _stack.close()


@dataclass(frozen=True)
class _Taken:
    per_minute: float
    start_seconds: float
    feature_copies: float
    processes: int


def _study(folder: str, setting: Setting, sets: tuple[str, str]) -> _Taken:
    from sharelock_ray.engine.tuning import tune
    from sharelock_ray.study.queue import StudyQueue
    from sharelock_ray.study.trial_job import TrialJob

    runs = Path(folder) / "study"
    tuning = TuningSpec.model_validate({"space": _space(setting), "max_concurrent": setting.threads})

    def prepare(point: dict[str, Any], seed: int) -> TrialJob:
        spec = _spec(setting, point)
        trial = Trial(point=point, seed=seed, run=str(runs / "trials" / content_hash(spec)), state="running")
        return TrialJob(trial=trial, vision=sets[0], language=sets[1], spec=spec)

    called = time.time()
    queue = StudyQueue("bench", tuning, str(runs / "trials"), str(runs / "optuna.journal"), prepare)
    size = sum(open_features(uri).manifest.rows * setting.dim * 2 for uri in sets)
    with _mapped_memory(Path(folder) / "cache") as mapped:
        trials = tune(queue, tuning, setting.steps, setting.steps // 2)
    first = min((Path(trial.run) / "training-request.json").stat().st_mtime for trial in trials)
    last = max((Path(trial.run) / "trial.json").stat().st_mtime for trial in trials)
    shutil.rmtree(runs)
    return _Taken(len(trials) / (last - first) * 60, first - called, mapped.bytes / size, mapped.processes)


@dataclass
class _Mapped:
    """(processes, bytes) per sample."""

    samples: list[tuple[int, int]] = field(default_factory=list)

    @property
    def processes(self) -> int:
        return max((processes for processes, _ in self.samples), default=0)

    @property
    def bytes(self) -> float:
        """The median, since processes are sampled one after another while pages change."""
        return statistics.median([held for processes, held in self.samples if processes == self.processes] or [0])


@contextmanager
def _mapped_memory(cache: Path) -> Iterator[_Mapped]:
    """Memory of the files in `cache` in all descendant processes, by proportional set size.

    A page mapped by n processes counts 1/n for each, so a shared copy counts once.
    """
    found, stop = _Mapped(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            held = [_held(process, cache) for process in psutil.Process().children(recursive=True)]
            found.samples.append((sum(map(bool, held)), sum(held)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _held(process: psutil.Process, cache: Path) -> int:
    try:
        maps = process.memory_maps(grouped=True)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return sum(each.pss for each in maps if each.path.startswith(str(cache)))
