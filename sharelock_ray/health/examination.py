"""All checks of one machine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sharelock_ray.health import stores
from sharelock_ray.health.access import Peer, ports
from sharelock_ray.health.check import Check, run
from sharelock_ray.health.disks import cache_disk, spill_disk
from sharelock_ray.health.encoder_weights import Weights, weights
from sharelock_ray.health.hardware import file_limit, gpus, memory, shared_memory
from sharelock_ray.health.software import versions


@dataclass(frozen=True)
class Order:
    """What to check beside the machine itself.

    Args:
        folder: that of the checks in the run's output; None checks no storage.
        nonce: what the driver wrote there; None on the driver's machine.
        gpus, object_store: GPUs and bytes of the object store that Ray offers on the node.
    """

    folder: str | None = None
    nonce: stores.Nonce | None = None
    weights: tuple[Weights, ...] = ()
    peers: tuple[Peer, ...] = ()
    gpus: float = 0
    object_store: int | None = None


@dataclass(frozen=True)
class Findings:
    """The checks of a machine, and its versions, for comparison with others."""

    checks: tuple[Check, ...]
    versions: dict[str, str]


def examine(order: Order) -> Findings:
    """Makes all checks of this machine; those that take time run at once."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("GPUs", partial(gpus, order.gpus)),
        ("memory", memory),
        ("shared memory", partial(shared_memory, order.object_store)),
        ("open files", file_limit),
        ("cache", cache_disk),
        ("spill", spill_disk),
    ]
    if order.peers:
        checks.append(("ports", partial(ports, order.peers)))
    checks += [(f"weights of {each.encoder}", partial(weights, each)) for each in order.weights]
    seen = [stores.shared_output(order.nonce)] if order.nonce else []
    # On a node that does not see the output, the other checks of it would be of the node's own disk.
    if order.folder and all(check.state == "ok" for check in seen):
        checks += [
            ("store", partial(stores.store_access, order.folder)),
            ("store speed", partial(stores.store_speed, order.folder)),
            ("store clock", partial(stores.store_clock, order.folder)),
        ]
    return Findings((*seen, *run(checks)), versions())
