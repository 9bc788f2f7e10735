"""The retry policy for requests to a store."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class ExhaustedError(Exception):
    """A transient error persisted beyond the limits of the policy; the cause is the last error."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, limited in attempts and in time.

    The pause before a retry is uniformly distributed between zero and a bound that doubles with each failure. This
    minimises collisions between clients (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    attempts: int = 10
    """Maximum number of consecutive attempts without progress; at least 1."""
    first_s: float = 0.2
    """Bound of the first pause in seconds."""
    longest_s: float = 20
    """Maximum bound of a pause in seconds."""
    total_s: float = 300
    """Maximum seconds without progress, including an attempt that hangs."""

    def pause(self, failed: int) -> float:
        """Random seconds to wait after `failed` consecutive failures."""
        return random.uniform(0, min(self.longest_s, self.first_s * 2 ** (failed - 1)))

    async def run(
        self,
        attempt: Callable[[], Awaitable[_T]],
        transient: Callable[[Exception], bool],
        progress: Callable[[], int] = lambda: 0,
    ) -> tuple[_T, int]:
        """Repeats `attempt` while its errors are transient.

        Args:
            transient: whether an error is transient; a time-out always is.
            progress: measure of the permanent progress of all attempts; when it grows, all limits start again.

        Returns:
            The result of `attempt`, and the number of failed attempts.

        Raises:
            ExhaustedError: a limit of the policy is reached.
            Exception: the error of `attempt` if it is not transient.
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
