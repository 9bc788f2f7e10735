"""Connection to Ray: a local instance, or the cluster at an address."""

import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
import ray.job_config
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from sharelock_ray.engine.environment import CONNECTED, OWN_INSTANCE, environment
from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.health.capacity import Capacity
from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import chatter_to, on_terminal, say
from sharelock_ray.storage import node_cache

_ANSWER_S = 10.0
_PREFIX, _LOG = "sharelock-", "log"
# Ray's sockets add up to 85 bytes to the path, and the limit is 107.
_LONGEST_BASE = 22
_LOGS_KEPT = 20
# Ray notices a worker that died during its start only after a minute, and restarts such workers forever.
_DEAD_S = 20.0
_POLL_S = 0.2
# Ray Data's name of the threads that prefetch rows, which end within a tenth of a second; and the time-out for them.
_READER_THREAD, _READER_S = "iter_threaded", 10.0
# State of the connection made by `connected`.
_folder: Path | None = None
_own = False


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Connects to Ray within the block; an existing connection is reused.

    Connects to the cluster at `address` or `RAY_ADDRESS` (set by `ray job submit`). Without an address, starts a local
    instance that listens on the loopback interface only, requires a secret token, and is removed with its files at the
    end of the block. Ray's output goes to a log file, which is kept if an error refers to it. The process's environment
    is restored afterwards.

    Raises:
        RequestError: no cluster answers at the address.
        RunError: the local instance does not start.
    """
    global _folder, _own
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = OWN_INSTANCE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if address == "local" else {}
    with _own_folder() as folder, _token_of(CONNECTED | own), chatter_to(folder / _LOG):
        _folder, _own = folder, bool(own)
        try:
            with _interrupts_deferred():
                _start(folder) if _own else _join(address)
            if _own:
                _require_workers(folder)
            yield
        finally:
            _wait_for_readers()
            ray.shutdown()
            _folder, _own = None, False


def _wait_for_readers() -> None:
    """Waits for Ray Data's threads after a stream was closed early.

    Ray exits the whole process, without a message to the user, if one of them calls it after the shutdown.
    """
    for thread in threading.enumerate():
        if thread.name == _READER_THREAD:
            thread.join(_READER_S)


@contextmanager
def _token_of(variables: dict[str, str]) -> Iterator[None]:
    """Sets these variables within the block and makes Ray read its token from them.

    Ray caches the first token that it reads, so the cache is reset.
    """
    with environment(variables):
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Creates a private folder for the block; also removes folders left by killed processes."""
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if "RAY_TMPDIR" not in os.environ and len(os.fsencode(base)) > _LONGEST_BASE:
        base = Path("/tmp")
    for left in base.glob(f"{_PREFIX}*/lock"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        # Locked before the rename, so that no other process finds it unlocked.
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "lock")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(lock: Path) -> None:
    # The folder may belong to another user or no longer exist.
    with suppress(OSError):
        status = lock.parent.lstat()
        with open(os.open(lock, os.O_RDWR | os.O_NOFOLLOW), "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if status.st_uid == os.getuid():
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defers Ctrl-C to the end of the block: between forks it could leave Python's locks held forever."""
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
    if address.startswith(("http://", "https://")):
        raise RequestError(
            f"{address} is the jobs address of a Ray cluster, for `ray job submit --address`: give HOST:PORT of its "
            f"head (the port of `ray start`, usually 6379), or submit the command as a job"
        )
    if address.startswith("ray://"):
        raise RequestError(
            f"{address} belongs to Ray Client, which cannot train: on a node of the cluster, give HOST:PORT of its "
            f"head (the port of `ray start`, usually 6379), or submit the command as a job"
        )
    host, _, port = address.rpartition(":")
    try:
        # If nothing listens, Ray itself would retry silently for minutes.
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address, job_config=_job(), log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise RequestError(
            f"the Ray cluster at {address} requires another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to "
            f"the file that holds it"
        ) from None
    except (OSError, OverflowError, ValueError, RuntimeError, RayError) as error:
        raise RequestError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None


def _start(folder: Path) -> None:
    for attempt in (1, 2):
        try:
            with _loopback_only():
                ray.init(
                    address="local",
                    # One CPU must stay free beside the actor pool, even on a single core, or reads would wait forever.
                    num_cpus=max(2, cpu_count()),
                    include_dashboard=False,
                    job_config=_job(),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Ray's files are world-writable, but the folder around them is private.
                    _temp_dir=str(folder / "r"),
                )
            return
        # On a loaded machine, the first start can exceed Ray's fixed time-out of 30 s.
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise RunError(f"Ray did not start on this machine: {_first_line(error)}{_kept_log()}") from error


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Makes Ray processes started in the block listen on 127.0.0.1, the default on systems other than Linux.

    Ray reads `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER` only on import, which the host may already have done.
    """
    usual = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


def _job() -> ray.job_config.JobConfig:
    """Keeps the working directory off the workers' path, where a folder `torch` would shadow the package."""
    return ray.job_config.JobConfig(_client_job=True)


def _require_workers(folder: Path) -> None:
    """Raises RunError if workers die during their start."""
    first, alive_at = _no_op.remote(), time.monotonic()
    while not ray.wait([first], timeout=_POLL_S)[0]:
        if any(map(_is_worker, psutil.Process().children(recursive=True))):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > _DEAD_S:
            raise RunError(f"Ray's workers die during their start: {_last_error_line(folder)}{_kept_log()}")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("default_worker.py") for word in process.cmdline())
    except psutil.Error:
        return False


@ray.remote(num_cpus=0)
def _no_op() -> None:
    pass


def _last_error_line(folder: Path) -> str:
    """The last line of a worker's error log."""
    for path in (folder / "r").glob("session_*/logs/worker-*.err"):
        lines = path.read_text(errors="replace").split("\n")
        if any(lines):
            return [line for line in lines if line.strip()][-1]
    return "no reason was logged"


def require_resources(needed: dict[str, float], advice: str) -> None:
    """Raises RequestError if the cluster cannot provide the resources of a stage; Ray itself would wait silently.

    On an autoscaling cluster, only prints a message.
    """
    available = ray.cluster_resources()
    for name, amount in needed.items():
        if available.get(name, 0) >= amount:
            continue
        if not can_scale_up():
            raise RequestError(f"this needs {amount:g} {name}, but Ray has {available.get(name, 0):g} here: {advice}")
        say(
            f"this needs {amount:g} {name}, but the cluster has {available.get(name, 0):g} now: "
            f"waiting for it to scale up; if it does not, {advice}"
        )


def capacity() -> Capacity:
    """The resources of the connected cluster."""
    return Capacity(ray.cluster_resources(), ray.available_resources(), can_scale_up())


def can_scale_up() -> bool:
    """Whether the cluster can scale up: a launcher or KubeRay labels its nodes with their group."""
    return not _own and any("ray.io/node-group" in node["Labels"] for node in ray.nodes() if node["Alive"])


@contextmanager
def readable_errors(stage: str) -> Iterator[None]:
    """Converts Ray's exceptions to the worker's own `SharelockError`, or to a RunError of one line.

    The traceback goes to the log and, unless output is a terminal, to the job's log.
    """
    try:
        yield
    except Exception as error:
        # Ray's wrapper of a worker's SharelockError is a RayError too; its text is a whole traceback.
        if isinstance(error, SharelockError) and not isinstance(error, RayError):
            raise
        name, message = _root(error)
        if name in (RequestError.__name__, RunError.__name__):
            raise (RequestError if name == RequestError.__name__ else RunError)(message) from None
        traceback.print_exc()
        if not on_terminal():
            for line in traceback.format_exc().splitlines():
                say(line)
        raise RunError(f"{stage} failed: {name}: {message}{_kept_log()}") from error


def _root(error: BaseException) -> tuple[str, str]:
    """Class and message of the error that a worker raised first.

    Ray passes on errors of constructors and of Ray Data functions only as a traceback within the message.
    """
    raised = re.findall(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit)): (.+)$", str(error), re.MULTILINE)
    return raised[0] if raised else (type(error).__name__, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scratch() -> Path | None:
    """A local folder that is removed with the connection; None if the host made the connection."""
    return _folder


def _kept_log() -> str:
    """Copies the log to the user's cache; returns its path as the end of a message."""
    if _folder is None:
        return ""
    folder = node_cache("logs")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"))[: 1 - _LOGS_KEPT]:
            old.unlink(missing_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), suffix=".log", dir=folder)
        with open(descriptor, "wb") as kept, (_folder / _LOG).open("rb") as log:
            shutil.copyfileobj(log, kept)
    except OSError:
        return ""
    return f" (log: {path})"
