"""Background work of a training, such as writes to storage."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """Runs tasks one at a time on a background thread; an exception is re-raised by a later call.

    As a context manager, it waits for all tasks at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    @property
    def is_busy(self) -> bool:
        return not all(future.done() for future in self._futures)

    def submit(self, task: Callable[..., None], *args: Any) -> Future[None]:
        """Queues a call of `task`; re-raises the exception of an earlier task."""
        while self._futures and self._futures[0].done():
            self._futures.pop(0).result()
        self._futures.append(self._thread.submit(task, *args))
        return self._futures[-1]

    def wait(self) -> None:
        """Waits for all tasks; re-raises the first exception."""
        futures, self._futures = self._futures, []
        for future in futures:
            future.result()
