"""One way to reach Ray: an instance of its own on this machine, or the cluster at an address."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

# Set before ray is imported: its own bars, chatter and usage report are not the user's output, and its workers run at
# normal niceness, since at Ray's default of 15 they starve beside any other process.
_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_BACKEND_LOG_LEVEL": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Otherwise each thread's own heap grows to tens of MB in every worker.
    "MALLOC_ARENA_MAX": "2",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# Ray reads these as it is imported. An instance of our own answers to nobody else; a cluster has its own rules.
if not os.environ.get("RAY_ADDRESS") and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import logging  # noqa: E402

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from sharelock_ray.errors import RequestError, RunError, SharelockError  # noqa: E402

_OBJECT_STORE_BYTES = 256 << 20


@contextmanager
def connected() -> Iterator[None]:
    """A connection to Ray for the time of the block; an existing one is used as it is.

    The cluster at `RAY_ADDRESS` where that is set (as under `ray job submit`), else an instance on this machine that
    wants a secret token and ends with the block.

    Raises:
        RequestError: no cluster answers at `RAY_ADDRESS`.
        RunError: the local instance does not start.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise RequestError(f"no Ray cluster answers at {address}: {_first_line(error)}") from None
    else:
        _start_local(options)
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(options: dict[str, object]) -> None:
    for attempt in (1, 2):
        try:
            # One CPU stays free beside the pool of actors even on a single core, or reads would wait for ever.
            ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **options,
            )
            return
        # On a loaded machine the first start can miss Ray's fixed time-out of 30 s.
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise RunError(f"Ray did not start on this machine: {_first_line(error)}") from error


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
    """Turns what Ray raises into the error that a worker meant, or into one line and the place of the logs."""
    try:
        yield
    except SharelockError:
        raise
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, SharelockError):
                # Ray raises a class of its own making that is also the cause's; only the cause prints as one line.
                kind = RequestError if isinstance(cause, RequestError) else RunError
                raise kind(str(getattr(cause, "cause", cause))) from None
        root = _causes(error)[-1]
        logs = os.path.join(ray._private.worker._global_node.get_session_dir_path(), "logs") if _is_local() else "Ray's"
        raise RunError(f"{stage} failed: {type(root).__name__}: {_last_line(root)} (logs: {logs})") from error


def _is_local() -> bool:
    return ray.is_initialized() and ray._private.worker._global_node is not None


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        this = todo.pop(0)
        if isinstance(this, BaseException) and this not in found:
            found.append(this)
            todo += [getattr(this, "cause", None), this.__cause__]
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
