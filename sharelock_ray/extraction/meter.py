"""Progress and rates of a running extraction, from the reports of its chunks."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.state import Live
from sharelock_ray.progress import Progress
from sharelock_ray.sources.sample import Shard


class Meter:
    """Measures one run and prints its progress line. `add` and `live` may be called from different threads.

    Args:
        shards: the whole input.
        open_chunks: number of chunks staged by earlier runs, by index of each unfinished shard.
        earlier: last state of an earlier run.
    """

    def __init__(self, stage: str, shards: Sequence[Shard], open_chunks: Mapping[int, int], earlier: Live) -> None:
        self._bytes = {shard.index: max(1, shard.bytes) for shard in shards}
        self._total = sum(self._bytes.values())
        self._closed = self._bytes.keys() - open_chunks.keys()
        self._done = sum(self._bytes[index] for index in self._closed)
        self._staged = {index: chunks for index, chunks in open_chunks.items() if chunks}
        self._seen: Counter[int] = Counter()
        self._chunks = self._chunk_bytes = 0
        self._earlier = earlier
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._seconds = {"read": 0.0, "encode": 0.0, "write": 0.0}
        self._rejects = self._tokens = 0
        self._workers: dict[str, tuple[float, float]] = {}
        self._progress = Progress(stage, "samples")
        self._lock = threading.Lock()

    def __enter__(self) -> "Meter":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(None, None, None)

    def add(self, report: ChunkReport, whole: bool) -> None:
        """Adds one chunk and updates the progress line.

        Args:
            whole: whether all chunks of its shard are staged.
        """
        with self._lock:
            now = time.monotonic()
            self._tokens += report.tokens
            if self._first is None:
                self._first = now, self._tokens
            since, _ = self._workers.get(report.worker, (now - report.encode_seconds, now))
            self._workers[report.worker] = since, now
            for stage, seconds in report.seconds.items():
                self._seconds[stage] += seconds
            self._rejects += report.rejects
            self._chunks += 1
            self._chunk_bytes += report.bytes
            if report.part not in self._closed:
                self._seen[report.part] += report.bytes
                if whole:
                    self._closed.add(report.part)
                    self._done += self._bytes[report.part]
                    del self._seen[report.part]
                    self._staged.pop(report.part, None)
            rejects = f"{self._rejects:,} rejects" if self._rejects else ""
            note = "; ".join(filter(None, (self._live(now).work, rejects)))
            self._progress.update(report.samples, note, self.share)

    @property
    def share(self) -> float:
        """Fraction of the input's bytes that is encoded, from 0 to 1.

        Bytes of a shard other than images and captions count once the shard is done. Chunks staged by earlier runs are
        assumed to have the mean size of this run's chunks.
        """
        mean = self._chunk_bytes / max(1, self._chunks)
        partly = sum(
            min(self._seen[part] + self._staged.get(part, 0) * mean, self._bytes[part])
            for part in self._seen.keys() | self._staged.keys()
        )
        return (self._done + partly) / self._total

    def live(self) -> Live:
        """The current state, for `status` on any machine."""
        with self._lock:
            return self._live(time.monotonic())

    def _live(self, now: float) -> Live:
        first_at, first_tokens = self._first or (now, 0)
        return Live(
            samples=self._earlier.samples + self._progress.count,
            rejects=self._earlier.rejects + self._rejects,
            samples_per_second=round(self._progress.rate(now), 2),
            tokens_per_second=round((self._tokens - first_tokens) / (now - first_at), 2) if now > first_at else 0.0,
            seconds={stage: round(seconds, 2) for stage, seconds in self._seconds.items()} if self._chunks else {},
            encoders_idle=round(self.idle, 4),
            share=round(self.share, 4),
            seconds_left=self._progress.seconds_left(now),
            wall_seconds=self.wall_seconds,
            updated=time.time(),
        )

    @property
    def wall_seconds(self) -> float:
        """Wall seconds of this run and earlier ones."""
        return round(self._earlier.wall_seconds + time.monotonic() - self._started, 2)

    @property
    def idle(self) -> float:
        """Fraction of the actors' time, from each one's first chunk to its last, in which no encoder was busy."""
        there = sum(last - since for since, last in self._workers.values())
        return min(1.0, max(0.0, 1 - self._seconds["encode"] / there)) if there else 0.0


def combined(known: Iterable[Live | None]) -> Live:
    """The state of earlier runs with the most wall seconds."""
    return max((live for live in known if live), key=lambda live: live.wall_seconds, default=Live())
