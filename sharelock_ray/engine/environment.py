"""Environment variables for Ray and its workers, set while a connection lasts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

CONNECTED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # With Ray's default of 15, workers starve beside any other process.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Training workers keep the driver's working directory, so that relative paths stay valid.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Otherwise each thread's heap grows to tens of MB in every worker.
    "MALLOC_ARENA_MAX": "2",
}
"""Variables for every connection."""
OWN_INSTANCE = {
    # A local machine is not preempted; this saves a process of 0.1 GB.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray would wait for prestarted workers, forever if they die during their start.
    "RAY_prestart_worker_first_driver": "0",
}
"""Variables for a local instance."""


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that are not set yet within the block.

    Also removes the variables that Ray itself sets within the block.
    """
    before = dict(os.environ)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            if name in defaults or name.startswith("RAY_") or name == "PYTHONBREAKPOINT":
                del os.environ[name]
