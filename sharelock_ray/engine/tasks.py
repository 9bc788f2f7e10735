"""Maps a function over items on all nodes of a cluster."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sharelock_ray.engine import cluster

# isort: split
import pyarrow as pa
import ray

from sharelock_ray.engine.stream import stream_of, unpacked

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


def streamed(stage: str, function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """As `each`, through Ray Data: items are taken as their results are used. For large functions or many results.

    The function is sent to each node once.
    """
    with cluster.connected(), cluster.readable_errors(stage):
        stream = stream_of(items, in_order=True).map_batches(
            _apply, fn_args=([ray.put(function)],), batch_size=1, batch_format="pyarrow", num_cpus=1
        )
        yield from map(unpacked, stream.iter_batches(batch_size=1, batch_format="pyarrow"))


def _apply(table: pa.Table, function: list[Any]) -> pa.Table:
    return pa.table({"object": [pickle.dumps(_shared(function[0])(unpacked(table)))]})


@lru_cache(maxsize=1)
def _shared(function: Any) -> Any:
    return ray.get(function)


@ray.remote(num_cpus=1, max_retries=3)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
