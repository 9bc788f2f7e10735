"""Metrics of a running training, as JSON lines and TensorBoard events, on a local disk and an object store."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.metrics import Metrics


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    if request.param == "local":
        yield RunFolder(str(tmp_path / "run"))
    else:
        yield RunFolder("memory://metrics-test")
        storage.remove("memory://metrics-test")


def shown(run: RunFolder, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard reads: (step, value) by name."""
    folder.mkdir()
    for name in storage.names(run.tensorboard):
        (folder / name).write_bytes(storage.read_bytes(storage.join(run.tensorboard, name)))
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_rows_appear_in_both_formats(run: RunFolder, tmp_path: Path) -> None:
    with Metrics(run, writes=True, step=0) as metrics:
        metrics.add({"step": 10, "loss": 0.5, "grad_norm": 2.0})
        metrics.add({"step": 20, "loss": 0.25})
    assert run.metrics() == [{"step": 10, "loss": 0.5, "grad_norm": 2.0}, {"step": 20, "loss": 0.25}]
    assert shown(run, tmp_path / "copy") == {"loss": [(10, 0.5), (20, 0.25)], "grad_norm": [(10, 2.0)]}


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    with Metrics(run, writes=True, step=0) as before:
        for step in (10, 20, 30):
            before.add({"step": step, "loss": 1.0})
    with Metrics(run, writes=True, step=20) as after:
        after.add({"step": 30, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert shown(run, tmp_path / "copy") == {"loss": [(10, 1.0), (20, 1.0), (30, 2.0)]}


def test_publish_writes_all_rows(run: RunFolder, tmp_path: Path) -> None:
    with Metrics(run, writes=True, step=0) as metrics:
        for step in (10, 20):
            metrics.add({"step": step, "loss": 1.0})
        metrics.publish().result()
        assert shown(run, tmp_path / "copy") == {"loss": [(10, 1.0), (20, 1.0)]}


def test_only_one_rank_writes(run: RunFolder) -> None:
    with Metrics(run, writes=False, step=0) as metrics:
        metrics.add({"step": 10, "loss": 1.0})
    assert (run.metrics(), metrics.rows) == ([], [{"step": 10, "loss": 1.0}])
    assert not storage.exists(run.tensorboard)


def test_alive_rewrites_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(str(tmp_path))
    with Metrics(run, writes=True, step=0) as metrics:
        metrics.add({"step": 1, "loss": 1.0})
        metrics.publish().result()
        os.utime(tmp_path / "metrics.jsonl", (0, 0))
        metrics.alive()
        assert run.metrics_age() > 60
        monkeypatch.setattr("sharelock_ray.runs.metrics._SIGN_OF_LIFE_S", 0.0)
        metrics.alive()
        support.wait_for(lambda: run.metrics_age() < 60)


def test_all_rows_are_written_if_the_training_is_interrupted(run: RunFolder, tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), Metrics(run, writes=True, step=0) as metrics:
        for step in (10, 20):
            metrics.add({"step": step, "loss": 1.0})
        raise KeyboardInterrupt
    assert [row["step"] for row in run.metrics()] == [10, 20]
    assert shown(run, tmp_path / "copy") == {"loss": [(10, 1.0), (20, 1.0)]}


def test_no_step_waits_for_a_slow_store(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = support.hold_writes(monkeypatch)
    monkeypatch.setattr("sharelock_ray.runs.metrics._WRITE_EVERY_S", 0.0)
    with Metrics(run, writes=True, step=0) as metrics:
        for step in (10, 20, 30):
            metrics.add({"step": step, "loss": 1.0})
        assert run.metrics() == []
        answers.set()
    assert [row["step"] for row in run.metrics()] == [10, 20, 30]


def test_a_write_error_is_raised_by_a_later_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    monkeypatch.setattr("sharelock_ray.runs.metrics._WRITE_EVERY_S", 0.0)
    metrics = Metrics(RunFolder(str(tmp_path)), writes=True, step=0)
    metrics.add({"step": 10, "loss": 1.0})
    with pytest.raises(RequestError, match=r"metrics\.jsonl cannot be written"):
        metrics.publish().result()
    with pytest.raises(RequestError, match=r"metrics\.jsonl cannot be written"), metrics:
        metrics.add({"step": 20, "loss": 1.0})


def test_an_event_file_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(RequestError, match=r"sharelock cannot be written"):
        Metrics(RunFolder(str(tmp_path)), writes=True, step=0)
