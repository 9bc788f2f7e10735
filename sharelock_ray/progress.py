"""What a person sees of long work: one line rewritten in place on a terminal, a plain line now and then in a log."""

import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

_LOG_EVERY_S = 10.0
_TERMINAL_EVERY_S = 0.2
# What a terminal obeys or hides: controls, marks of direction, halves of surrogate pairs, separators of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Of letters in Persian and in the scripts of India, and of emoji: they are spelling."""
# Where the user looks while this process's standard error is a log file.
_user: TextIO | None = None


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
        self._share = self._start_share = 0.0
        self._note = ""
        self._started: float | None = None
        self._printed_at = time.monotonic()
        self._terminal = on_terminal()

    def update(self, count: int = 1, note: str = "", share: float = 0.0) -> None:
        """Adds `count`; `note` replaces the free text at the end of the line.

        Args:
            count: less than 0 where work was lost; rate and ETA are then of what comes after.
            share: of the whole work that is done, from 0 to 1, where that is known without a total.
        """
        now = time.monotonic()
        self.count += count
        self._share = share
        self._note = note or self._note
        if self._started is None or count < 0:
            # Rate and ETA are of the work, not of the start of the workers.
            self._started, self._start_count, self._start_share = now, self.count, share
        if now - self._printed_at >= (_TERMINAL_EVERY_S if self._terminal else _LOG_EVERY_S):
            self._printed_at = now
            self._print(self.line(now))

    def line(self, now: float) -> str:
        """The text of the line at the monotonic time `now` (seconds)."""
        total = f"/{self.total:,}" if self.total else ""
        text = f"{self.stage}: {self.count:,}{total} {self.unit}"
        if self._share:
            text += f" ({self._share:.0%})"
        rate, left = self.rate(now), self.seconds_left(now)
        if rate > 0:
            text += f", {rate:,.1f}/s"
        if left is not None:
            text += f", {clock(left)} left"
        return f"{text}  {self._note}".rstrip()

    def rate(self, now: float) -> float:
        """Units a second since the first news; 0 before there are any."""
        return 0.0 if self._started is None else (self.count - self._start_count) / max(now - self._started, 1e-9)

    def seconds_left(self, now: float) -> float | None:
        """None while nothing is known of it."""
        rate = self.rate(now)
        if self.total and rate > 0:
            return (self.total - self.count) / rate
        gained = self._share - self._start_share
        if self._started is None or gained <= 0:
            return None
        return (1 - self._share) * (now - self._started) / gained

    def _print(self, text: str) -> None:
        end, start = ("", "\r\x1b[2K") if self._terminal else ("\n", "")
        print(f"{start}{printable(text)}", end=end, file=_stream(), flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="", file=_stream(), flush=True)


def say(text: str) -> None:
    """One plain line about the run, on standard error, so that standard output stays the result."""
    print(printable(text), file=_stream(), flush=True)


def printable(text: str) -> str:
    """`text` on one line, with all that a terminal would obey or hide as escapes such as `\\x1b`.

    For every text that may hold some of the data. Where the data is wanted as it is, there is `--json`.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDDEN and char not in _JOINERS
        else char
        for char in text
    )


def on_terminal() -> bool:
    """Whether a person looks at what is said; else it goes to a file or a job's log."""
    return _stream().isatty()


@contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Sends what libraries print to a file for the time of the block; only `say` and `Progress` reach the user.

    Works on the file descriptors, since Ray's core writes to them past Python.
    """
    global _user
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as sink, os.fdopen(os.dup(2), "w", errors="backslashreplace") as user:
        try:
            _user = user
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
            _user = None


def _stream() -> TextIO:
    return _user or sys.stderr


def clock(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
