"""Metrics of a running training: `metrics.jsonl` and TensorBoard event files."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from sharelock_ray import storage
from sharelock_ray.runs.background import Background
from sharelock_ray.runs.folder import RunFolder

_WRITE_EVERY_S = 2.0
# `sharelock status` reports a run as stopped if its file is older than a minute.
_SIGN_OF_LIFE_S = 20.0
_Item = TypeVar("_Item")


class Metrics:
    """Collects the rows of `metrics.jsonl` and writes them, on the main rank only.

    Each start or resume of the training adds a TensorBoard event file in `tensorboard/`. On a local disk, it grows with
    the rows; on an object store, it is replaced at each checkpoint.

    A background thread writes, so that no step waits for storage; an exception is re-raised by a later call. As a
    context manager, it writes all rows at the end, also after an exception.

    Args:
        writes: whether this rank writes.
        step: last step of the checkpoint to resume from; later rows are dropped. 0 for a new training.
    """

    def __init__(self, run: RunFolder, writes: bool, step: int) -> None:
        self.rows = [row for row in run.metrics() if row["step"] <= step] if step else []
        self._run, self._written_at = run, 0.0
        self._events = _Events(run.tensorboard, step) if writes else None
        self._thread = Background()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.publish()
        self._thread.__exit__(*error)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row of numbers, which contains its `step`."""
        self.rows.append(row)
        if self._events is not None:
            self._events.add(row)
        self._write_if_older_than(_WRITE_EVERY_S)

    def alive(self) -> None:
        """Rewrites the file if it is old, so that a slow training is not reported as stopped."""
        if self.rows:
            self._write_if_older_than(_SIGN_OF_LIFE_S)

    def alive_over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields `items`, and calls `alive` before each."""
        for item in items:
            self.alive()
            yield item

    def publish(self) -> Future[None]:
        """Queues the write of all rows; the future is done when they are written."""
        return self._thread.submit(self._write, list(self.rows), True)

    def _write_if_older_than(self, seconds: float) -> None:
        if time.monotonic() - self._written_at > seconds and not self._thread.is_busy:
            self._written_at = time.monotonic()
            self._thread.submit(self._write, list(self.rows), False)

    def _write(self, rows: list[dict[str, Any]], publishes: bool) -> None:
        if self._events is not None:
            self._run.write_metrics(rows)
            self._events.write()
            if publishes:
                self._events.publish()


class _Events:
    """A TensorBoard event file. For a run on an object store, it is written to a temporary folder and then copied.

    Uses tensorboardX's `RecordWriter`. The flush of its `SummaryWriter` does not wait for queued rows, and a disk error
    ends its thread silently.
    """

    def __init__(self, folder: str, step: int) -> None:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        name = f"events.out.tfevents.{time.time_ns()}.sharelock"
        self._uri = storage.join(folder, name)
        self._temporary = None if storage.is_local(folder) else TemporaryDirectory()
        parent = self._temporary.name if self._temporary else storage.resolve(folder)[1]
        self._path = Path(parent, name)
        with storage.writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
        self._new = deque([Event(wall_time=time.time(), file_version="brain.Event:2")])
        if step:
            # This makes TensorBoard ignore later steps of earlier files.
            start = SessionLog(status=SessionLog.START)
            self._new.append(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def add(self, row: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._new.append(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def write(self) -> None:
        with storage.writing(self._path):
            while self._new:
                self._file.write(self._new.popleft().SerializeToString())
            self._file.flush()

    def publish(self) -> None:
        """Copies the file to the object store, if the run is on one."""
        if self._temporary is not None:
            storage.write_bytes(self._uri, self._path.read_bytes())
