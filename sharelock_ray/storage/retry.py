"""The one policy by which a request to a store is repeated."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class ExhaustedError(Exception):
    """A transient fault that outlasted the policy; its cause is the last error."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded in attempts and in time.

    The pause before a repetition is drawn evenly from zero to a bound that doubles: of many clients that failed
    together, the fewest then meet again (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    attempts: int = 10
    """In a row without progress; at least one."""
    first_s: float = 0.2
    """Bound of the first pause."""
    longest_s: float = 20
    """Bound of any pause."""
    total_s: float = 300
    """Everything together since there was progress, an attempt that hangs included."""

    def pause(self, failed: int) -> float:
        """Seconds to wait after the attempt that failed as the `failed`-th in a row."""
        return random.uniform(0, min(self.longest_s, self.first_s * 2 ** (failed - 1)))

    async def run(
        self,
        attempt: Callable[[], Awaitable[_T]],
        transient: Callable[[Exception], bool],
        progress: Callable[[], int] = lambda: 0,
    ) -> tuple[_T, int]:
        """Repeats `attempt` while what it raises is `transient`, as a time-out always is.

        Args:
            progress: grows with what attempts have got done for good; after one that brought some, all begins again.

        Returns:
            what `attempt` returned, and how many attempts failed before.

        Raises:
            ExhaustedError: the policy's bounds are reached.
            Exception: what `attempt` raised, where that is not transient.
        """
        began = since = time.monotonic()
        tried = failed = 0
        while True:
            before = progress()
            tried += 1
            try:
                async with asyncio.timeout(self.total_s - (time.monotonic() - since)):
                    return await attempt(), tried - 1
            except Exception as error:
                if not (isinstance(error, TimeoutError) or transient(error)):
                    raise
                now = time.monotonic()
                failed += 1
                if progress() > before:
                    failed, since = 1, now
                pause = self.pause(failed)
                if failed >= self.attempts or now - since + pause >= self.total_s:
                    raise ExhaustedError(f"{tried} attempts in {now - began:.0f} s") from error
            await asyncio.sleep(pause)
