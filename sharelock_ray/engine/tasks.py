"""Maps a function over items on all nodes of a cluster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sharelock_ray.engine import cluster

# isort: split
import ray

_T = TypeVar("_T")
_R = TypeVar("_R")


def each(stage: str, function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """Yields `function` of each item, in order; each call is a task with one CPU.

    Args:
        stage: name of this work in errors.

    Raises:
        RequestError: no cluster answers.
        RunError: a task failed.
    """
    with cluster.connected(), cluster.readable_errors(stage):
        shared = ray.put(function)
        running = [_call.remote(shared, item) for item in items]
        while running:
            yield ray.get(running.pop(0))


@ray.remote(num_cpus=1, max_retries=3)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
