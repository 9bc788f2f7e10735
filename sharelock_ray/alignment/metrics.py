"""What a training tells while it runs: `metrics.jsonl`, and the same for TensorBoard."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from sharelock_ray import storage
from sharelock_ray.alignment.background import Background
from sharelock_ray.alignment.run import RunFolder

_WRITE_EVERY_S = 2.0
# Whoever watches takes a file that is a minute old for that of a dead run.
_SIGN_OF_LIFE_S = 20.0
_Item = TypeVar("_Item")


class Metrics:
    """The rows of `metrics.jsonl`; only the main rank writes them.

    TensorBoard's event files lie in `tensorboard/` of the run, one for each time that the training was begun or went
    on. They grow with the rows; on an object store, where no file grows, they are put anew at each checkpoint.

    A thread writes, so that no step waits for a disk or a store. What it is refused, a later call raises. As a context
    manager, all rows are written when it ends, however that is.

    Args:
        step: where the training goes on: rows up to it are taken back, later ones come again.
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
        """A row of numbers, with its `step`."""
        self.rows.append(row)
        if self._events is not None:
            self._events.add(row)
        self._write_if_older_than(_WRITE_EVERY_S)

    def alive(self) -> None:
        """A sign of life between rows that are long in coming."""
        if self.rows:
            self._write_if_older_than(_SIGN_OF_LIFE_S)

    def alive_over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """These, with signs of life between them."""
        for item in items:
            self.alive()
            yield item

    def publish(self) -> Future[None]:
        """Has everything so far written; it is once the future is done."""
        return self._thread.do(self._write, list(self.rows), True)

    def _write_if_older_than(self, seconds: float) -> None:
        if time.monotonic() - self._written_at > seconds and not self._thread.is_busy:
            self._written_at = time.monotonic()
            self._thread.do(self._write, list(self.rows), False)

    def _write(self, rows: list[dict[str, Any]], publishes: bool) -> None:
        if self._events is not None:
            self._run.write_metrics(rows)
            self._events.write()
            if publishes:
                self._events.publish()


class _Events:
    """An event file of TensorBoard; of a run on an object store, a copy of a temporary one.

    It is written by tensorboardX's `RecordWriter`. Not by its `SummaryWriter`: the flush of that does not wait for rows
    that are still in its queue, and an error of the disk ends its thread unnoticed.
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
            # TensorBoard forgets what earlier files say from here on.
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
        """Puts the whole file on an object store."""
        if self._temporary is not None:
            storage.write_bytes(self._uri, self._path.read_bytes())
