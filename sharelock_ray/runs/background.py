"""What a training has written while it goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """Does one thing after another in a thread. What one of them raises, the next call raises.

    As a context manager it ends when all is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    @property
    def is_busy(self) -> bool:
        return not all(each.done() for each in self._begun)

    def do(self, work: Callable[..., None], *args: Any) -> Future[None]:
        """Has the thread call `work` once it is free."""
        while self._begun and self._begun[0].done():
            self._begun.pop(0).result()
        self._begun.append(self._thread.submit(work, *args))
        return self._begun[-1]

    def wait(self) -> None:
        """Returns once all is done."""
        begun, self._begun = self._begun, []
        for each in begun:
            each.result()
