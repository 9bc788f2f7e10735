"""One way to reach Ray: an instance of its own on this machine, or the cluster at an address."""

import logging
import os
import re
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharelock_ray import ray_environment as ray_environment

# isort: split
import ray
from ray.exceptions import RayError

from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.progress import chatter_to

_ANSWER_S = 10.0
_LOG = Path(tempfile.gettempdir()) / f"sharelock-ray-{os.getpid()}.log"


@contextmanager
def connected() -> Iterator[None]:
    """A connection to Ray for the time of the block; an existing one is used as it is.

    The cluster at `RAY_ADDRESS` where that is set (as under `ray job submit`), else an instance on this machine that
    wants a secret token and ends with the block. What Ray prints goes to a log file, which an error names.

    Raises:
        RequestError: no cluster answers at `RAY_ADDRESS`.
        RunError: the local instance does not start.
    """
    if ray.is_initialized():
        yield
        return
    with chatter_to(_LOG):
        try:
            address = os.environ.get("RAY_ADDRESS")
            with _interrupts_deferred():
                _join(address) if address else _start()
            yield
        finally:
            ray.shutdown()
    _LOG.unlink()


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Holds Ctrl-C back for the time of the block: between forks it could leave Python's own locks taken for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if caught:
        raise KeyboardInterrupt


def _join(address: str) -> None:
    # Ray itself would try again and again, for minutes and in silence, where nothing listens.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise RequestError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None


def _start() -> None:
    for attempt in (1, 2):
        try:
            ray.init(
                address="local",
                # One CPU stays free beside the pool of actors even on a single core, or reads would wait for ever.
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        # On a loaded machine the first start can miss Ray's fixed time-out of 30 s.
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise RunError(f"Ray did not start on this machine: {_first_line(error)} (log: {_LOG})") from error


def require_resources(needed: dict[str, float], advice: str) -> None:
    """Fails at once where the cluster can never hold what a stage needs; Ray itself would wait in silence.

    A cluster that scales itself up is not judged by the nodes that it has now.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    available = ray.cluster_resources()
    for name, amount in needed.items():
        if available.get(name, 0) < amount:
            raise RequestError(f"this needs {amount:g} {name}, but Ray has {available.get(name, 0):g} here: {advice}")


@contextmanager
def readable_errors(stage: str) -> Iterator[None]:
    """Turns what Ray raises into the error that a worker meant, or into one line; the whole of it goes to the log."""
    try:
        yield
    except Exception as error:
        # Ray makes one of a worker's own error too, whose text is the whole traceback.
        if isinstance(error, SharelockError) and not isinstance(error, RayError):
            raise
        traceback.print_exc()
        name, message = _root(error)
        if name in (RequestError.__name__, RunError.__name__):
            raise (RequestError if name == RequestError.__name__ else RunError)(message) from None
        raise RunError(f"{stage} failed: {name}: {message} (log: {_LOG})") from error


def _root(error: BaseException) -> tuple[str, str]:
    """Class and message of the error that a worker raised first.

    Ray brings errors of constructors and of Ray Data's functions only as text: a traceback within the message.
    """
    raised = re.findall(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit)): (.+)$", str(error), re.MULTILINE)
    return raised[0] if raised else (type(error).__name__, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
