"""Whether, and when, a cluster has the resources that a stage asks for."""

from collections.abc import Mapping
from dataclasses import dataclass

from sharelock_ray.health.check import Check


@dataclass(frozen=True)
class Capacity:
    """Resources of all nodes by name, those that no work holds now, and whether nodes can be added."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    can_scale_up: bool = False


def wait(stage: str, needed: Mapping[str, float], capacity: Capacity) -> Check:
    """Estimates how long a stage waits for its resources.

    Args:
        needed: the least that it can start with, by name.
    """
    name = f"wait of {stage}"
    lacks_now, lacks_ever = (_lacking(needed, offered) for offered in (capacity.free, capacity.total))
    if not lacks_now:
        return Check(name, "ok", f"none: {_said(needed)} free")
    if not lacks_ever:
        remedy = "wait, end other work (`ray job list`), or lower the recipe's `operations`"
        return Check(name, "warn", f"until other work frees {_said(lacks_now)}", remedy)
    if capacity.can_scale_up:
        remedy = "check that a node type offers this, and its `max_workers`"
        return Check(name, "warn", f"minutes, until nodes with {_said(lacks_ever)} more have started", remedy)
    remedy = "add nodes, or lower the recipe's `operations`"
    return Check(name, "fail", f"for ever: {_said(lacks_ever)} more than all nodes have", remedy)


def _lacking(needed: Mapping[str, float], offered: Mapping[str, float]) -> dict[str, float]:
    return {name: amount - offered.get(name, 0) for name, amount in needed.items() if amount > offered.get(name, 0)}


def _said(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items() if amount)
