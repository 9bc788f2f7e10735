"""Progress of long work: one line rewritten in place on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

_LOG_EVERY_S = 10.0
_TERMINAL_EVERY_S = 0.2


class Progress:
    """Counts `unit`s of a stage against a known or unknown total, and prints rate and ETA to standard error.

    Args:
        stage: what the user called it ("extract train").
        unit: what is counted ("images").
        total: how many there will be; None where unknown.
        done: how many an earlier run had finished; they count for the total, not for the rate.
    """

    def __init__(self, stage: str, unit: str, total: int | None = None, done: int = 0) -> None:
        self.stage, self.unit, self.total = stage, unit, total
        self.count = self._start_count = done
        self._note = ""
        self._started = time.monotonic()
        self._printed_at = self._started
        self._terminal = sys.stderr.isatty()

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count`; `note` replaces the free text at the end of the line."""
        self.count += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._printed_at >= (_TERMINAL_EVERY_S if self._terminal else _LOG_EVERY_S):
            self._printed_at = now
            self._print(self.line(now))

    def line(self, now: float) -> str:
        """The text of the line at the monotonic time `now` (seconds)."""
        elapsed = max(now - self._started, 1e-9)
        rate = (self.count - self._start_count) / elapsed
        total = f"/{self.total:,}" if self.total else ""
        text = f"{self.stage}: {self.count:,}{total} {self.unit}, {rate:,.1f}/s"
        if self.total and rate > 0:
            text += f", {_clock((self.total - self.count) / rate)} left"
        return f"{text}  {self._note}".rstrip()

    def _print(self, text: str) -> None:
        end, start = ("", "\r\x1b[2K") if self._terminal else ("\n", "")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """One plain line about the run, on standard error, so that standard output stays the result."""
    print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
