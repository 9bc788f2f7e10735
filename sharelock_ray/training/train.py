"""Training of one alignment on the workers of a cluster.

Ray Train starts the workers, joins them in a process group, and starts them anew when one is lost; where to go on
from, they read from the run's own `last` checkpoint, so a lost worker and a killed driver are the same case.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from sharelock_ray import engine, storage
from sharelock_ray.alignment.run import RunFolder, TrainingResult
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.progress import Progress, say
from sharelock_ray.training.options import TrainingOptions

_POLL_S = 1.0


def train(run: RunFolder, vision: str, language: str, spec: AlignmentSpec, options: TrainingOptions) -> TrainingResult:
    """Trains, or goes on with, the run; a finished one is left alone.

    Args:
        vision, language: URIs of the feature sets of one dataset split.

    Raises:
        RequestError: the folder holds another training, the sets do not fit, or Ray has too few resources.
        RunError: workers failed more often than `max_failures`.
    """
    run.begin(spec, open_features(vision).manifest, open_features(language).manifest)
    result = run.result()
    if result is not None:
        return result
    with engine.connected(), engine.readable_errors("train"):
        engine.require_resources(
            {"CPU": options.num_workers * options.num_cpus, "GPU": options.num_workers * options.use_gpu},
            "lower operations.training.num_workers or num_cpus",
        )
        with _following(run, spec.steps):
            mistake = _trainer(run, vision, language, spec, options).fit().return_value
        if mistake is not None:
            raise mistake
    result = run.result()
    assert result is not None
    storage.remove(_ray_folder(run))
    return result


def _trainer(run: RunFolder, vision: str, language: str, spec: AlignmentSpec, options: TrainingOptions) -> TorchTrainer:
    return TorchTrainer(
        _worker,
        train_loop_config={
            "run": run.uri,
            "vision": vision,
            "language": language,
            "spec": spec.model_dump(mode="json"),
            "threads": max(1, int(options.num_cpus)),
        },
        scaling_config=ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.use_gpu,
            resources_per_worker={"CPU": options.num_cpus} | ({"GPU": 1} if options.use_gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if options.use_gpu else "gloo"),
        run_config=RunConfig(
            # A name of its own for each attempt: Ray's record of an earlier one has nothing to add to `last`.
            name=f"attempt-{time.time_ns()}",
            storage_path=_ray_folder(run),
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )


def _worker(config: dict[str, Any]) -> RequestError | None:
    import torch

    from sharelock_ray.alignment.train import train as train_on_rank

    torch.set_num_threads(config["threads"])
    try:
        train_on_rank(
            RunFolder(config["run"]),
            config["vision"],
            config["language"],
            AlignmentSpec.model_validate(config["spec"]),
            device=str(get_device()),
        )
    # Every worker finds the same mistake in the request; an exception would be taken for a lost worker and tried again.
    except RequestError as error:
        return error
    return None


def _ray_folder(run: RunFolder) -> str:
    """Where Ray Train keeps its own records of this run while it lasts."""
    return storage.absolute(storage.join(run.uri, "ray"))


@contextmanager
def _following(run: RunFolder, steps: int) -> Iterator[None]:
    """Shows how far the workers are, from the metrics that they write."""
    stop = threading.Event()

    def follow(progress: Progress) -> None:
        while not stop.wait(_POLL_S):
            rows = run.metrics()
            if rows:
                losses = [row["loss"] for row in rows if "loss" in row]
                progress.update(rows[-1]["step"] - progress.count, f"loss {losses[-1]:.3f}")

    rows = run.metrics()
    done = rows[-1]["step"] if rows else 0
    if done:
        say(f"train: continues near step {done:,}")
    with Progress("train", "steps", steps, done) as progress:
        thread = threading.Thread(target=follow, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
