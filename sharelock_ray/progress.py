"""Progress output: one line rewritten in place on a terminal, plain lines at intervals in a log."""

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
# Categories that a terminal interprets or hides: controls, bidirectional marks, surrogates, line separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Joiners that are part of the spelling in Persian, Indic scripts and emoji."""
# The user's stream while standard error is redirected to a log file.
_user: TextIO | None = None


class Progress:
    """Counts the units of a stage and prints rate and remaining time to standard error.

    Args:
        stage: name of the stage ("extract train").
        unit: what is counted ("images").
        total: total count; None if unknown.
        done: count of an earlier run; it counts towards the total, not the rate.
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
            count: negative if work was lost; this restarts the measurement of rate and remaining time.
            share: fraction of the work done, from 0 to 1, if that is known without a total.
        """
        now = time.monotonic()
        self.count += count
        self._share = share
        self._note = note or self._note
        if self._started is None or count < 0:
            # The start of workers does not count towards rate and remaining time.
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
        """Units per second since the first update; 0 before it."""
        return 0.0 if self._started is None else (self.count - self._start_count) / max(now - self._started, 1e-9)

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds to the end; None if unknown."""
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
    """Prints one line about the run to standard error; standard output is reserved for the result."""
    print(printable(text), file=_stream(), flush=True)


def printable(text: str) -> str:
    """`text` on one line, with characters that a terminal would interpret or hide escaped (`\\x1b`).

    Use it for every text that may contain data; `--json` gives the data unchanged.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDDEN and char not in _JOINERS
        else char
        for char in text
    )


def on_terminal() -> bool:
    """Whether output goes to a terminal, rather than a file or a job's log."""
    return _stream().isatty()


@contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Redirects the output of libraries to a file within the block; only `say` and `Progress` reach the user.

    Redirects file descriptors, since Ray's core bypasses Python's streams.
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
    """Formats seconds as `h:mm:ss`, or `m:ss` below an hour."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
