"""Ports for the servers that tests start."""

import random
import socket
from contextlib import ExitStack, suppress


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on, below those that the system gives out (32,768 on Linux).

    Ray in a test that runs at the same time may take any of the latter before the server does.
    """
    found: list[int] = []
    # All are held until the last is found, so that they differ.
    with ExitStack() as stack:
        for port in random.sample(range(20_000, 32_000), 100 * count):
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no port is free")
