"""What a running extraction is doing, in numbers, from the reports of its chunks."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.state import Live
from sharelock_ray.progress import Progress
from sharelock_ray.sources.sample import Shard

_WRITE_EVERY_S = 10.0


class Meter:
    """Follows one run; prints its progress line.

    Args:
        shards: the whole input.
        finished: indices of the shards that earlier runs have done.
        earlier: what an earlier run last told of itself.
    """

    def __init__(self, stage: str, shards: Sequence[Shard], finished: Sequence[int], earlier: Live) -> None:
        self._bytes = {shard.index: max(1, shard.bytes) for shard in shards}
        self._done = sum(self._bytes[index] for index in finished)
        self._open: dict[int, int] = defaultdict(int)
        self._earlier = earlier
        self._started = self._written_at = time.monotonic()
        self._first_at: float | None = None
        self._seconds = {"read": 0.0, "encode": 0.0, "write": 0.0}
        self._rejects = self._tokens = 0
        self._workers: dict[str, float] = {}
        self._progress = Progress(stage, "samples")

    def __enter__(self) -> "Meter":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(None, None, None)

    def add(self, report: ChunkReport) -> None:
        """Counts one chunk, and prints a line now and then."""
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
        self._workers.setdefault(report.worker, now - report.encode_seconds)
        for stage, seconds in report.seconds.items():
            self._seconds[stage] += seconds
        self._rejects += report.rejects
        self._tokens += report.tokens
        self._open[report.part] += report.bytes
        if report.last:
            self._done += self._bytes[report.part]
            del self._open[report.part]
        self._progress.update(report.samples, self._note(now), self.share)

    @property
    def share(self) -> float:
        """Of the input's bytes that are encoded; what surrounds the images in a shard counts when it is done."""
        partly = sum(min(seen, self._bytes[part]) for part, seen in self._open.items())
        return (self._done + partly) / sum(self._bytes.values())

    def is_due(self) -> bool:
        """True every ten seconds: time to write `live` where others can see it."""
        now = time.monotonic()
        due = now - self._written_at > _WRITE_EVERY_S
        if due:
            self._written_at = now
        return due

    def live(self) -> Live:
        """For those who watch from elsewhere."""
        now = time.monotonic()
        return Live(
            samples=self._earlier.samples + self._progress.count,
            rejects=self._earlier.rejects + self._rejects,
            samples_per_second=round(self._progress.rate(now), 2),
            share=round(self.share, 4),
            seconds_left=self._progress.seconds_left(now),
            wall_seconds=self.wall_seconds,
            updated=time.time(),
        )

    @property
    def wall_seconds(self) -> float:
        """Of this run and those before it."""
        return round(self._earlier.wall_seconds + time.monotonic() - self._started, 2)

    def _note(self, now: float) -> str:
        assert self._first_at is not None
        parts = []
        if self._tokens and now > self._first_at:
            parts.append(f"{self._tokens / (now - self._first_at):,.0f} tokens/s")
        total = sum(self._seconds.values())
        if total:
            parts.append(", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self._seconds.items()))
        parts.append(f"encoders idle {self.idle(now):.0%}")
        if self._rejects:
            parts.append(f"{self._rejects:,} rejects")
        return "; ".join(parts)

    def idle(self, now: float) -> float:
        """Share of the actors' time, each from its first chunk on, in which no encoder was at work."""
        there = sum(now - since for since in self._workers.values())
        return min(1.0, max(0.0, 1 - self._seconds["encode"] / there)) if there else 0.0


def combined(known: Iterable[Live | None]) -> Live:
    """What the feature sets of earlier runs say of them: the one that tells most."""
    return max((live for live in known if live), key=lambda live: live.wall_seconds, default=Live())
