"""One way to reach Ray: an instance of its own on this machine, or the cluster at an address."""

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
from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import chatter_to, on_terminal, say
from sharelock_ray.storage import node_cache

_ANSWER_S = 10.0
_PREFIX, _LOG = "sharelock-", "log"
# Ray puts sockets 85 bytes below it, and a socket's path may have 107.
_LONGEST_BASE = 22
_LOGS_KEPT = 20
# Ray itself looks for a worker that died as it started after a minute, and would start others for ever.
_DEAD_S = 20.0
_POLL_S = 0.2
# Of the connection that `connected` has made.
_folder: Path | None = None
_own = False


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A connection to Ray for the time of the block; an existing one is used as it is.

    The cluster at `address` or `RAY_ADDRESS` where one is given (as under `ray job submit`), else an instance on this
    machine that listens on the loopback interface only, wants a secret token, and ends with the block, as do its files.
    What Ray prints goes to a log file, which is kept where an error names it. Afterwards the process's environment is
    as it was before.

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
            ray.shutdown()
            _folder, _own = None, False


@contextmanager
def _token_of(variables: dict[str, str]) -> Iterator[None]:
    """The environment with these variables, and a Ray that knows no token but the one in it.

    Ray has a token for each new instance unless the environment says otherwise, and keeps what it once read.
    """
    with environment(variables):
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, for the time of the block; those of killed processes are removed."""
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if "RAY_TMPDIR" not in os.environ and len(os.fsencode(base)) > _LONGEST_BASE:
        base = Path("/tmp")
    for left in base.glob(f"{_PREFIX}*/lock"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    try:
        # Another process must not find it before it is held.
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "lock")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(lock: Path) -> None:
    # Of another user, or gone by now.
    with suppress(OSError):
        about = lock.parent.lstat()
        with open(os.open(lock, os.O_RDWR | os.O_NOFOLLOW), "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if about.st_uid == os.getuid():
                shutil.rmtree(lock.parent, ignore_errors=True)


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
    if address.startswith(("http://", "https://")):
        raise RequestError(
            f"{address} is the jobs address of a Ray cluster, for `ray job submit --address`: give HOST:PORT of its "
            f"head (the port of `ray start`, 6379 as a rule), or submit the command as a job"
        )
    if address.startswith("ray://"):
        raise RequestError(
            f"{address} belongs to Ray Client, which cannot train: on a node of the cluster, give HOST:PORT of its "
            f"head (the port of `ray start`, 6379 as a rule), or submit the command as a job"
        )
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try again and again, for minutes and in silence, where nothing listens.
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address, job_config=_job(), log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise RequestError(
            f"the Ray cluster at {address} wants another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the "
            f"file that holds it"
        ) from None
    except (OSError, OverflowError, ValueError, RuntimeError, RayError) as error:
        raise RequestError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None


def _start(folder: Path) -> None:
    for attempt in (1, 2):
        try:
            with _loopback_only():
                ray.init(
                    address="local",
                    # One CPU stays free beside the pool of actors even on a single core, or reads would wait for ever.
                    num_cpus=max(2, cpu_count()),
                    include_dashboard=False,
                    job_config=_job(),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # Everybody may write to what Ray makes; not so to the folder around it.
                    _temp_dir=str(folder / "r"),
                )
            return
        # On a loaded machine the first start can miss Ray's fixed time-out of 30 s.
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise RunError(f"Ray did not start on this machine: {_first_line(error)}{_kept_log()}") from error


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Ray's processes that start in the block listen on 127.0.0.1, as they do by default on other systems than Linux.

    Ray reads `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER` once, as it is imported, which may have been the host's doing.
    """
    usual = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


def _job() -> ray.job_config.JobConfig:
    """Keeps the working directory off the workers' path, where a folder `torch` would stand for the package."""
    return ray.job_config.JobConfig(_client_job=True)


def _require_workers(folder: Path) -> None:
    """Raises where workers die as they start."""
    first, alive_at = _nothing.remote(), time.monotonic()
    while not ray.wait([first], timeout=_POLL_S)[0]:
        if any(map(_is_worker, psutil.Process().children(recursive=True))):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > _DEAD_S:
            raise RunError(f"Ray's workers die as they start: {_last_words(folder)}{_kept_log()}")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("default_worker.py") for word in process.cmdline())
    except psutil.Error:
        return False


@ray.remote(num_cpus=0)
def _nothing() -> None:
    pass


def _last_words(folder: Path) -> str:
    """What workers wrote last."""
    for path in (folder / "r").glob("session_*/logs/worker-*.err"):
        lines = path.read_text(errors="replace").split("\n")
        if any(lines):
            return [line for line in lines if line.strip()][-1]
    return "they leave no reason"


def require_resources(needed: dict[str, float], advice: str) -> None:
    """Fails at once where the cluster can never hold what a stage needs; Ray itself would wait in silence.

    A cluster that may scale itself up is not judged by the nodes that it has now; then the user is told.
    """
    available = ray.cluster_resources()
    for name, amount in needed.items():
        if available.get(name, 0) >= amount:
            continue
        if not _may_grow():
            raise RequestError(f"this needs {amount:g} {name}, but Ray has {available.get(name, 0):g} here: {advice}")
        say(
            f"this needs {amount:g} {name}, but the cluster has {available.get(name, 0):g} now: "
            f"waits for it to grow; where it does not, {advice}"
        )


def _may_grow() -> bool:
    """Whether a launcher or KubeRay made the nodes: it labels them with their group, and may add some."""
    return not _own and any("ray.io/node-group" in node["Labels"] for node in ray.nodes() if node["Alive"])


@contextmanager
def readable_errors(stage: str) -> Iterator[None]:
    """Turns what Ray raises into the error that a worker meant, or into one line.

    The whole of any other goes to the log, and also to where the user looks unless that is a terminal: to a job's log.
    """
    try:
        yield
    except Exception as error:
        # Ray makes one of a worker's own error too, whose text is the whole traceback.
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

    Ray brings errors of constructors and of Ray Data's functions only as text: a traceback within the message.
    """
    raised = re.findall(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit)): (.+)$", str(error), re.MULTILINE)
    return raised[0] if raised else (type(error).__name__, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scratch() -> Path | None:
    """A folder of this machine that ends with the connection; None where the host has made that itself."""
    return _folder


def _kept_log() -> str:
    """Keeps the log so far in the user's cache; says where, for the end of a message."""
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
