"""Training through Ray Train: the same curve as in one process, also after a worker or node is lost."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

import losses
import support
from sharelock_ray import storage
from sharelock_ray.alignment import distributed
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.engine import training as loop
from sharelock_ray.engine.training import train
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.errors import RequestError
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train as train_alone

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32, dropout=0.1, activation="gelu"),
    global_batch_size=64,
    steps=400,
    warmup_steps=5,
    evaluate_every=50,
    validation_fraction=0.2,
)
TWO = TrainingOptions(num_workers=2)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=300)


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory: pytest.TempPathFactory, features: tuple[str, str], local_ray: None) -> RunFolder:
    run = RunFolder(str(tmp_path_factory.mktemp("trained") / "run"))
    assert train(run, *features, SPEC, TWO) == run.result()
    return run


@pytest.mark.usefixtures("local_ray")
class TestTrain:
    def test_two_workers_give_the_curve_of_one_process(
        self, tmp_path: Path, features: tuple[str, str], of_two_workers: RunFolder
    ) -> None:
        alone = RunFolder(str(tmp_path))
        train_alone(alone, *features, SPEC)
        for ours, theirs in zip(of_two_workers.metrics(), alone.metrics(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)

    def test_a_finished_run_is_unchanged(self, features: tuple[str, str], of_two_workers: RunFolder) -> None:
        folder = Path(of_two_workers.uri)
        # Ray's own records are removed.
        assert not (folder / "ray").exists()
        before = (folder / "last" / "checkpoint.json").stat().st_mtime_ns
        assert train(of_two_workers, *features, SPEC, TWO) == of_two_workers.result()
        assert (folder / "last" / "checkpoint.json").stat().st_mtime_ns == before

    @pytest.mark.slow
    def test_a_killed_worker_changes_nothing(
        self, tmp_path: Path, features: tuple[str, str], of_two_workers: RunFolder
    ) -> None:
        run = RunFolder(str(tmp_path))
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker, args=(run, killed))
        killer.start()
        train(run, *features, SPEC, TWO)
        killer.join()
        assert killed
        assert run.metrics() == of_two_workers.metrics()

    def test_another_request_cannot_overwrite_a_run(self, features: tuple[str, str], of_two_workers: RunFolder) -> None:
        with pytest.raises(RequestError, match=r"learning_rate: 0\.001 there, 0\.1 now"):
            train(of_two_workers, *features, SPEC.model_copy(update={"learning_rate": 0.1}), TWO)

    def test_a_finished_run_of_an_older_version_is_unchanged(
        self, tmp_path: Path, features: tuple[str, str], of_two_workers: RunFolder
    ) -> None:
        run = RunFolder(str(tmp_path / "run"))
        shutil.copytree(of_two_workers.uri, run.uri)
        request = tmp_path / "run" / "training-request.json"
        asked = storage.read_json(str(request))
        del asked["alignment"]["order"]
        storage.write_json(str(request), asked)
        assert train(run, *features, SPEC, TWO) == of_two_workers.result()
        with pytest.raises(RequestError, match="order: global there, parts now"):
            train(run, *features, SPEC.model_copy(update={"order": "parts"}), TWO)

    def test_more_workers_than_cpus_fail_at_once(self, tmp_path: Path, features: tuple[str, str]) -> None:
        with pytest.raises(RequestError, match="needs 64 CPU"):
            train(RunFolder(str(tmp_path)), *features, SPEC, TrainingOptions(num_workers=64))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_worker_waits_for_one_that_found_a_fault(
    tmp_path: Path, features: tuple[str, str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run = RunFolder(str(tmp_path))
    storage.write_json(str(tmp_path / "training-request.json"), {"alignment": {}, "features": {"vision": "another"}})
    monkeypatch.setattr(loop, "_process_group", lambda backend: nullcontext())
    monkeypatch.setattr(distributed, "world_size", lambda group=None: workers)
    config = {"run": run.uri, "vision": features[0], "language": features[1], "spec": SPEC.model_dump(), "threads": 1}
    config |= {"device": "cpu", "compiled": False, "streams": False, "pairing": {}}
    with pytest.raises(RequestError, match="other settings") if workers > 1 else nullcontext():
        loop._worker(config)
    assert isinstance(run.fault(), RequestError)
    # A restarted worker returns at once.
    assert loop._worker(config) is None


@pytest.mark.slow
def test_a_lost_node_leaves_fewer_workers_that_continue_the_same_curve(tmp_path: Path) -> None:
    # Features are streamed to both nodes, then to the remaining one.
    features = support.write_feature_sets(tmp_path / "features", pairs=3000, parts=(8, 5))
    alone, run = RunFolder(str(tmp_path / "alone")), RunFolder(str(tmp_path / "run"))
    train_alone(alone, *features, losses.SPEC)
    subprocess.run([sys.executable, losses.__file__, "nodes", str(tmp_path)], check=True, timeout=300)
    assert run.data_placement() == "batches come from the storage (as asked)"
    assert [row["step"] for row in run.metrics()] == [row["step"] for row in alone.metrics()]
    for ours, theirs in zip(run.metrics(), alone.metrics(), strict=True):
        # Rounding accumulates over hundreds of steps.
        assert ours == pytest.approx(theirs, abs=2e-3, rel=5e-3)


def kill_a_worker(run: RunFolder, killed: list[int]) -> None:
    """Kills a training worker with SIGKILL after the first checkpoint."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if run.metrics() and run.metrics()[-1]["step"] >= 60:
            for process in psutil.process_iter(["cmdline"]):
                if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
                    return
        time.sleep(0.1)
