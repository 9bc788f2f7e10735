"""Access to a Ray cluster: its token, the ports between its nodes, and their clocks."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sharelock_ray.health.check import Check
from sharelock_ray.health.stores import skew

_ANSWER_S = 3
_TOKEN = "Ray token"


@dataclass(frozen=True)
class Peer:
    """A port of another node that this node must reach."""

    node: str
    host: str
    port: int


def ray_token(variables: Mapping[str, str] = os.environ) -> Check:
    """Checks the token that Ray's clients send, without sending it.

    Args:
        variables: environment variables of the driver.
    """
    if variables.get("RAY_AUTH_MODE", "").lower() != "token":
        found = "none is required: RAY_AUTH_MODE is not token, so whoever reaches the cluster's ports runs code on it"
        return Check(_TOKEN, "warn", found, "set RAY_AUTH_MODE=token where the head, the nodes and the clients start")
    if variables.get("RAY_AUTH_TOKEN"):
        return Check(_TOKEN, "ok", "in RAY_AUTH_TOKEN")
    path = Path(variables.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        empty, mode = not path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        found = f"none in {path} ({getattr(error, 'strerror', None) or 'it is no text'})"
        return Check(_TOKEN, "fail", found, "set RAY_AUTH_TOKEN_PATH to the file with the cluster's token")
    if empty:
        return Check(_TOKEN, "fail", f"{path} is empty", "copy the cluster's token into it")
    if mode & 0o077:
        return Check(_TOKEN, "warn", f"other users of this machine may read {path}", f"chmod 600 {path}")
    return Check(_TOKEN, "ok", f"in {path}")


def ports(peers: Sequence[Peer]) -> Check:
    """Checks that this node reaches ports of others; Ray would wait silently for what it cannot fetch."""

    def closed(peer: Peer) -> str | None:
        try:
            socket.create_connection((peer.host, peer.port), timeout=_ANSWER_S).close()
        except OSError as error:
            return f"{peer.node} at {peer.host}:{peer.port} ({error.strerror or error})"
        return None

    with ThreadPoolExecutor(max(1, len(peers))) as pool:
        faults = [fault for fault in pool.map(closed, peers) if fault]
    if faults:
        remedy = "open all TCP ports between the nodes: security group, network policy, firewall"
        return Check("ports", "fail", f"does not reach {', '.join(faults)}", remedy)
    return Check("ports", "ok", f"reaches {len({peer.node for peer in peers})} other nodes")


def now(_: object = None) -> float:
    """This node's clock: Unix time in seconds."""
    return time.time()


def clock(sent: float, answered: float, received: float) -> Check:
    """Compares a node's clock with the driver's.

    Args:
        sent, received: Unix times of a call and of its answer, by the driver's clock.
        answered: the time between them, by the node's clock.
    """
    return skew("clock", "the driver", max(sent - answered, answered - received, 0))
