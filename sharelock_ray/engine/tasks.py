"""Maps a function over items on all nodes of a cluster, or calls one on every node."""

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from sharelock_ray.engine import cluster

# isort: split
import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its name for users, its address and Ray's ports there, and what Ray offers on it."""

    id: str
    name: str
    address: str
    ports: tuple[int, ...]
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Answer(Generic[_R]):
    """What a function returned on a node, or the line of its error; when it was called, and when that arrived (Unix
    times of the driver)."""

    value: _R | None
    error: str | None
    sent: float
    received: float


def nodes() -> list[Node]:
    """The nodes of the connected cluster."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return [
        Node(
            node["NodeID"],
            # Several nodes of a cluster for tests share a host.
            host if hosts.count(host) == 1 else f"{host} ({node['NodeID'][:6]})",
            node["NodeManagerAddress"],
            (node["NodeManagerPort"], node["ObjectManagerPort"]),
            node["Resources"],
        )
        for host, node in zip(hosts, alive, strict=True)
    ]


def on_nodes(function: Callable[[_T], _R], items: Mapping[str, _T], seconds: float) -> dict[str, Answer[_R]]:
    """Calls `function` once on each node, beside its other work; the answers by the nodes' ids.

    Args:
        items: the argument for each node, by its id.
        seconds: time after which a node has not answered.
    """
    shared, answers = ray.put(function), {}
    sent = time.time()
    running = {_call_on(node).remote(shared, item): node for node, item in items.items()}
    while running:
        done, _ = ray.wait(list(running), timeout=max(0.0, sent + seconds - time.time()))
        received = time.time()
        for call in done:
            try:
                value, error = ray.get(call), None
            except RayError as raised:
                # The message of an error of the function is a traceback.
                value, error = None, ([type(raised).__name__, *str(raised).split("\n")])[-1].strip()
            answers[running.pop(call)] = Answer(value, error, sent, received)
        if not done:
            for call, node in running.items():
                ray.cancel(call, force=True)
                answers[node] = Answer(None, f"no answer within {seconds:g} s", sent, received)
            break
    return answers


def _call_on(node: str) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return _call.options(num_cpus=0, max_retries=0, scheduling_strategy=place)


@ray.remote(num_cpus=1, max_retries=3)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
