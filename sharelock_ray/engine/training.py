"""Training of one alignment on the workers of a cluster.

Ray Train starts the workers and restarts them when one is lost. They resume from the run's own `last` checkpoint, so a
lost worker and a killed driver are handled in the same way.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from sharelock_ray import storage
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.engine import cluster
from sharelock_ray.engine.environment import environment
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.errors import SharelockError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.pairing import Pairing
from sharelock_ray.progress import Progress, say
from sharelock_ray.runs.folder import RunFolder, TrainingResult, newest, pairs_per_second

_POLL_S = 1.0
# Time-out of collective operations in a step: another worker may be waiting for a CPU to read its features. Ray reports
# a lost worker within seconds.
_STEP_TIMEOUT = timedelta(minutes=20)
# Time-out while other workers open the features of their node, which may include a download.
_OPENING_TIMEOUT = timedelta(hours=2)
_ALL_PAIRS = Pairing()


def train(
    run: RunFolder,
    vision: str,
    language: str,
    spec: AlignmentSpec,
    options: TrainingOptions,
    pairing: Pairing = _ALL_PAIRS,
) -> TrainingResult:
    """Trains or resumes the run; a finished run is left unchanged.

    Args:
        vision, language: URIs of the feature sets of one dataset split; or `language` of the texts of classes.
        pairing: which images and texts are paired.

    Raises:
        RequestError: the folder holds another training, the sets do not match, or Ray has too few resources.
        RunError: workers failed more often than `max_failures`, or the loss is non-finite.
    """
    run.begin(spec, open_features(vision).manifest, open_features(language).manifest, pairing.identity)
    result = run.result()
    if result is not None:
        return result
    with cluster.connected(), cluster.readable_errors("train"):
        cluster.require_resources(
            options.least_resources(spec.order),
            "lower operations.training.num_workers, min_workers or num_cpus"
            + " (with alignment.order parts, one CPU must stay free to read)" * (spec.order == "parts"),
        )
        trainer = _trainer(run, vision, language, spec, options, pairing)
        run.write_fault(None)
        with _progress(run, spec.steps):
            try:
                trainer.fit()
            except Exception:
                if run.fault() is None:
                    raise
            finally:
                storage.remove(_ray_folder(run))
        fault = run.fault()
        if fault is not None:
            raise fault
    result = run.result()
    assert result is not None
    return result


class _Trainer(DataParallelTrainer):
    """Ray Train's trainer without its handler of Ctrl-C, which exits with code 0.

    Not Ray's TorchTrainer, which also imports torch in the driver and the controller, at 0.3 GB each.
    """

    def _register_sigint_handler(self, controller: object) -> None:
        pass


def _trainer(
    run: RunFolder, vision: str, language: str, spec: AlignmentSpec, options: TrainingOptions, pairing: Pairing
) -> _Trainer:
    return _Trainer(
        _worker,
        train_loop_config={
            "run": run.uri,
            "vision": vision,
            "language": language,
            "spec": spec.model_dump(mode="json"),
            "pairing": pairing.model_dump(mode="json"),
            "threads": max(1, int(options.num_cpus)),
            "device": "cuda" if options.use_gpu else "cpu",
            "compiled": options.compile,
            "streams": options.stream,
        },
        scaling_config=ScalingConfig(
            num_workers=(options.min_workers, options.num_workers) if options.min_workers else options.num_workers,
            use_gpu=options.use_gpu,
            resources_per_worker={"CPU": options.num_cpus} | ({"GPU": 1} if options.use_gpu else {}),
        ),
        run_config=RunConfig(
            # A unique name per attempt: Ray's record of an earlier attempt is not used.
            name=f"attempt-{time.time_ns()}",
            storage_path=_ray_folder(run),
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    run = RunFolder(config["run"])
    if run.fault() is not None:
        return
    import torch

    from sharelock_ray.alignment.distributed import world_size
    from sharelock_ray.engine.feature_reads import read_by_tasks
    from sharelock_ray.runs.loop import train as train_on_rank

    torch.set_num_threads(config["threads"])
    with _process_group("nccl" if config["device"] == "cuda" else "gloo") as all_have_opened:
        try:
            train_on_rank(
                run,
                config["vision"],
                config["language"],
                AlignmentSpec.model_validate(config["spec"]),
                device=config["device"],
                compiled=config["compiled"],
                streams=config["streams"],
                read=read_by_tasks,
                all_have_opened=all_have_opened,
                pairing=Pairing.model_validate(config["pairing"]),
            )
        except SharelockError as error:
            run.write_fault(error)
            # Other workers may wait for this one. Ray treats it as lost and restarts all; they then return at once.
            if world_size() > 1:
                raise


@contextmanager
def _process_group(backend: str) -> Iterator[Callable[[], object]]:
    """Creates torch's default process group over the workers of this training; a single worker needs none.

    Yields a barrier with the longer time-out for opening features.
    """
    import torch.distributed as dist

    context, node = get_context(), ray.util.get_node_ip_address()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if world_size == 1:
        yield lambda: None
        return
    # If Ray listens on the loopback interface only, so do the workers.
    own = next((name for name, known in psutil.net_if_addrs().items() if _is_loopback(node, known)), None)
    listener = socket.create_server((node if own else "", 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(listener and (node, listener.getsockname()[1]))
    listening = listener.detach() if listener else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world_size, is_master=rank == 0, timeout=_STEP_TIMEOUT, master_listen_fd=listening
    )
    with environment({f"{library}_SOCKET_IFNAME": own for library in ("GLOO", "NCCL")} if own else {}):
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_STEP_TIMEOUT)
        opening = dist.new_group(timeout=_OPENING_TIMEOUT, backend="gloo")
        try:
            yield lambda: dist.barrier(opening)  # type: ignore[arg-type]
        finally:
            dist.destroy_process_group()


def _is_loopback(node: str, known: list[Any]) -> bool:
    return ip_address(node).is_loopback and any(each.address == node for each in known)


def _ray_folder(run: RunFolder) -> str:
    """Folder of Ray Train's own records of this run, removed at its end."""
    return storage.absolute(storage.join(run.uri, "ray"))


@contextmanager
def _progress(run: RunFolder, steps: int) -> Iterator[None]:
    """Shows the progress of the run within the block, from the files that its workers write."""
    before = run.metrics()
    if before:
        say(f"train: continues near step {_last_step(before):,}")
    run.write_data_placement(None)
    ended = threading.Event()
    # Progress, not Ray, runs on the thread: a thread waiting in `ray.get` crashes the process at Ray's shutdown.
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(_print_progress, run, steps, before, ended)
        try:
            yield
        finally:
            ended.set()
        following.result()


def _print_progress(run: RunFolder, steps: int, before: list[dict[str, Any]], ended: threading.Event) -> None:
    """Prints the metrics that are added to the run's folder after `before`."""
    placed = None
    with Progress("train", "steps", steps, _last_step(before)) as progress:
        while not ended.wait(_POLL_S):
            # Storage errors are handled by the workers.
            with suppress(SharelockError):
                if placed is None and (placed := run.data_placement()) is not None:
                    say(f"train: {placed}")
                rows = run.metrics()
                if rows != before:
                    progress.update(_last_step(rows) - progress.count, _note(rows, progress.rate(time.monotonic())))


def _last_step(rows: list[dict[str, Any]]) -> int:
    return int(rows[-1]["step"]) if rows else 0


def _note(rows: list[dict[str, Any]], steps_per_second: float) -> str:
    return ", ".join(filter(None, (pairs_per_second(rows, steps_per_second), newest(rows))))
