"""`doctor`: checks this machine, or every node of a cluster, before work begins, and says what to do."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharelock_ray.errors import RunError, SharelockError
from sharelock_ray.health import stores
from sharelock_ray.health.access import Peer, clock, now, ray_token
from sharelock_ray.health.capacity import Capacity, wait
from sharelock_ray.health.check import Check, refused
from sharelock_ray.health.encoder_weights import Weights
from sharelock_ray.health.examination import Findings, Order, examine
from sharelock_ray.health.hardware import gpu_count
from sharelock_ray.health.software import same_versions, versions
from sharelock_ray.machine import cpu_count
from sharelock_ray.recipe.schema import Recipe

if TYPE_CHECKING:
    from sharelock_ray.engine.tasks import Answer, Node

DRIVER, HERE = "driver", "this machine"
_ANSWER_S = 90.0
# Each node tries the ports of so many others, so that large clusters do not take a square of connections.
_PEERS = 8
_OF_RECIPE = "output, weights and waiting times: give a RECIPE"
_OF_CLUSTER = "shared output, versions, clocks and ports between nodes, token: give the --address of a cluster"

_TO_START = "nodes that the cluster has yet to start: run this again once they are there"


@dataclass(frozen=True)
class NodeChecks:
    """The checks of one node, or of what concerns the whole cluster (`driver`)."""

    node: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The checks by node, and what could not be checked, and why."""

    nodes: tuple[NodeChecks, ...]
    not_checked: tuple[str, ...]

    def require(self) -> None:
        """Raises RunError if a check failed."""
        states = [check.state for node in self.nodes for check in node.checks]
        if failed := states.count("fail"):
            raise RunError(f"{failed} of {len(states)} checks failed: see what to do beside each")


def doctor(recipe: Recipe | None, address: str | None = None) -> Diagnosis:
    """Checks every node of the cluster at `address` or `RAY_ADDRESS`, or without one this machine, without Ray.

    Args:
        recipe: also checks its output, the weights of its encoders, and how long its stages wait for resources.

    Raises:
        RequestError: a model is unknown, or no cluster answers.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    weights = tuple(Weights.of(encoder) for encoder in recipe.encoders) if recipe else ()
    not_checked = () if recipe else (_OF_RECIPE,)
    if address == "local":
        return Diagnosis((_machine(recipe, weights),), (*not_checked, _OF_CLUSTER))
    token = ray_token()
    if token.state == "fail":
        return Diagnosis((NodeChecks(DRIVER, (token,)),), (*not_checked, "the nodes: there is no token to reach them"))
    nodes, unseen = _cluster(recipe, weights, address, token)
    return Diagnosis(nodes, (*not_checked, *unseen))


def _machine(recipe: Recipe | None, weights: tuple[Weights, ...]) -> NodeChecks:
    # The resources of a Ray that a command starts here.
    resources = {"CPU": float(max(2, cpu_count())), "GPU": float(gpu_count())}
    with _probe(recipe) as folder:
        found = examine(Order(folder, weights=weights))
    return NodeChecks(HERE, (*found.checks, *_waits(recipe, Capacity(resources, resources))))


def _cluster(
    recipe: Recipe | None, weights: tuple[Weights, ...], address: str, token: Check
) -> tuple[tuple[NodeChecks, ...], tuple[str, ...]]:
    """The checks of a cluster, and what could not be checked."""
    from sharelock_ray.engine import cluster, tasks

    with cluster.connected(address), _probe(recipe) as folder:
        nonce, written = _nonce(folder)
        nodes = tasks.nodes()
        orders = {
            node.id: Order(
                folder if nonce else None,
                nonce,
                weights,
                tuple(_peers(nodes, i)),
                node.resources.get("GPU", 0),
                int(node.resources.get("object_store_memory", 0)) or None,
            )
            for i, node in enumerate(nodes)
        }
        capacity = cluster.capacity()
        found = tasks.on_nodes(examine, orders, _ANSWER_S)
        answered = [node for node, answer in found.items() if answer.value is not None]
        # With workers that run already, a call takes milliseconds, and so tells the difference of the clocks.
        clocks = tasks.on_nodes(now, dict.fromkeys(answered), _ANSWER_S)
    of_nodes = [NodeChecks(node.name, _of_node(node, found[node.id], clocks.get(node.id))) for node in nodes]
    driver = NodeChecks(DRIVER, (token, *written, *_waits(recipe, capacity)))
    return (driver, *of_nodes), (_TO_START,) if capacity.can_scale_up else ()


def _of_node(node: "Node", found: "Answer[Findings]", time: "Answer[float] | None") -> tuple[Check, ...]:
    if found.value is None:
        remedy = "see that node's log of Ray; every node needs this package and its requirements.lock"
        return (Check("node", "fail", f"cannot be examined: {found.error}", remedy),)
    offers = ", ".join(f"{node.resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    answers = Check("node", "ok", f"examined in {found.received - found.sent:.1f} s; offers {offers}")
    clocks = [clock(time.sent, time.value, time.received)] if time and time.value is not None else []
    return (answers, same_versions(found.value.versions, versions()), *clocks, *found.value.checks)


@contextmanager
def _probe(recipe: Recipe | None) -> Iterator[str | None]:
    """A folder for the checks in the recipe's output; None without a recipe."""
    if recipe is None:
        yield None
        return
    with stores.probe_folder(recipe.output) as folder:
        yield folder


def _nonce(folder: str | None) -> tuple[stores.Nonce | None, list[Check]]:
    """A nonce in `folder`, and the checks of writing it."""
    if folder is None:
        return None, []
    try:
        return stores.write_nonce(folder), []
    except (SharelockError, OSError) as error:
        return None, [refused("shared output", error, "set `output` to a place that the driver may write")]


def _peers(nodes: Sequence["Node"], i: int) -> Iterator[Peer]:
    """The ports of the nodes after node `i`."""
    for step in range(1, min(_PEERS + 1, len(nodes))):
        node = nodes[(i + step) % len(nodes)]
        yield from (Peer(node.name, node.address, port) for port in node.ports)


def _waits(recipe: Recipe | None, capacity: Capacity) -> list[Check]:
    if recipe is None:
        return []
    operations, study = recipe.operations, recipe.tuning
    stages = {
        "extract": operations.extraction.least_resources,
        "train": operations.training.least_resources(recipe.alignment.order),
    }
    if study is not None:
        stages["tune"] = {"CPU": study.cpus_per_trial, "GPU": study.gpus_per_trial}
    return [wait(stage, needed, capacity) for stage, needed in stages.items()]
