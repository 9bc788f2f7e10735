"""What a training tells while it runs, as JSON lines and for TensorBoard, on a disk and on an object store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from sharelock_ray import storage
from sharelock_ray.alignment.metrics import Metrics
from sharelock_ray.alignment.run import RunFolder


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    if request.param == "local":
        yield RunFolder(str(tmp_path / "run"))
    else:
        yield RunFolder("memory://metrics-test")
        storage.remove("memory://metrics-test")


def events(run: RunFolder) -> list[Event]:
    """Of all files, read record by record: length, its checksum, an event, its checksum."""
    found = []
    for name in storage.names(run.tensorboard):
        assert "tfevents" in name
        data = storage.read_bytes(storage.join(run.tensorboard, name))
        while data:
            length = int.from_bytes(data[:8], "little")
            content, end = data[12 : 12 + length], data[12 + length : 16 + length]
            assert [data[8:12], end] == [masked_crc32c(part).to_bytes(4, "little") for part in (data[:8], content)]
            found.append(Event.FromString(content))
            data = data[16 + length :]
    return found


def scalars(run: RunFolder) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events(run) for value in event.summary.value]


def test_are_there_for_both_readers(run: RunFolder) -> None:
    metrics = Metrics(run, writes=True, step=0)
    metrics.add({"step": 10, "loss": 0.5, "grad_norm": 2.0})
    metrics.add({"step": 20, "loss": 0.25})
    metrics.publish()
    assert run.metrics() == [{"step": 10, "loss": 0.5, "grad_norm": 2.0}, {"step": 20, "loss": 0.25}]
    assert scalars(run) == [(10, "loss", 0.5), (10, "grad_norm", 2.0), (20, "loss", 0.25)]


def test_of_a_resumed_run_begin_where_it_goes_on(run: RunFolder) -> None:
    before = Metrics(run, writes=True, step=0)
    for step in (10, 20, 30):
        before.add({"step": step, "loss": 1.0})
    before.publish()
    after = Metrics(run, writes=True, step=20)
    after.add({"step": 30, "loss": 2.0})
    after.publish()
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert [value for value in scalars(run) if value[0] == 30] == [(30, "loss", 1.0), (30, "loss", 2.0)]
    # TensorBoard shows the later one alone: the second file says that it starts anew at step 21.
    (start,) = [event for event in events(run) if event.session_log.status == SessionLog.START]
    assert start.step == 21


def test_only_one_rank_writes(run: RunFolder) -> None:
    metrics = Metrics(run, writes=False, step=0)
    metrics.add({"step": 10, "loss": 1.0})
    metrics.publish()
    assert (run.metrics(), metrics.rows) == ([], [{"step": 10, "loss": 1.0}])
    assert not storage.exists(run.tensorboard)


def test_give_a_sign_of_life_where_rows_are_long_in_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(str(tmp_path))
    metrics = Metrics(run, writes=True, step=0)
    metrics.add({"step": 1, "loss": 1.0})
    os.utime(tmp_path / "metrics.jsonl", (0, 0))
    metrics.alive()
    assert run.metrics_age() > 60
    monkeypatch.setattr("sharelock_ray.alignment.metrics._SIGN_OF_LIFE_S", 0.0)
    metrics.alive()
    assert run.metrics_age() < 60
