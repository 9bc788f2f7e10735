"""The result of one check, and running several."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from sharelock_ray.errors import SharelockError

State = Literal["ok", "warn", "fail"]
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """`warn`: runs work, but slowly or not always. `fail`: some run will fail."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty if `state` is `ok`."""


def graded(name: str, value: float, warn: float, fail: float, found: str, remedy: str) -> Check:
    """Fails if `value` is below `fail`, and warns if it is below `warn`."""
    if value >= warn:
        return Check(name, "ok", found)
    return Check(name, "fail" if value < fail else "warn", found, remedy)


def refused(name: str, error: Exception, remedy: str) -> Check:
    """A failed check; `error` says what was found."""
    said = str(error) if isinstance(error, SharelockError | OSError) else f"{type(error).__name__}: {error}"
    return Check(name, "fail", " ".join(said.split()), remedy)


def run(checks: Sequence[tuple[str, Callable[[], Check]]]) -> list[Check]:
    """Runs named checks at the same time; their results, in order. A check that raises has failed."""

    def result(name: str, check: Callable[[], Check]) -> Check:
        try:
            return check()
        # A check that cannot be made must not hide the others.
        except Exception as error:
            return refused(name, error, "this check could not be made: see the message")

    with ThreadPoolExecutor(max(1, len(checks))) as pool:
        return list(pool.map(result, *zip(*checks, strict=True))) if checks else []
