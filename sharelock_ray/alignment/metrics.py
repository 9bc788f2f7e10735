"""What a training tells while it runs: `metrics.jsonl`, and the same for TensorBoard."""

import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
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
            self._events.append()
            if publishes:
                self._events.publish()


class _Events:
    """An event file of TensorBoard.

    Not tensorboardX's own writer: a thread of its writes what a flush has promised, and a run on S3 would need its own
    way there.
    """

    def __init__(self, folder: str, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._uri = storage.join(folder, f"events.out.tfevents.{time.time_ns()}.sharelock")
        self._written = 0
        self._records = record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            # TensorBoard forgets what earlier files say from here on.
            start = SessionLog(status=SessionLog.START)
            self._records += record(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def add(self, row: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._records += record(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def append(self) -> None:
        """Lets a local file grow by what is new."""
        if storage.is_local(self._uri):
            path, records = Path(storage.resolve(self._uri)[1]), self._records
            with storage.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as stream:
                    stream.write(records[self._written :])
            self._written = len(records)

    def publish(self) -> None:
        """Puts the whole file on an object store."""
        if not storage.is_local(self._uri):
            storage.write_bytes(self._uri, self._records)


def record(event: Any) -> bytes:
    """A TFRecord: length and content, each with its masked CRC-32C."""
    from tensorboardX.record_writer import masked_crc32c

    def checked(data: bytes) -> Iterable[bytes]:
        return data, struct.pack("<I", masked_crc32c(data))

    content = event.SerializeToString()
    return b"".join([*checked(struct.pack("<Q", len(content))), *checked(content)])
