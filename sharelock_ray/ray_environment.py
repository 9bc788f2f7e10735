"""Environment variables that Ray and its workers read, set for as long as a connection lasts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

CONNECTED = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # At Ray's default of 15, workers starve beside any other process.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Training workers stay in the driver's folder, so that a path means the same everywhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Otherwise each thread's own heap grows to tens of MB in every worker.
    "MALLOC_ARENA_MAX": "2",
}
"""Wherever Ray runs. Ray's own chatter and usage report are not the user's output."""
OWN_INSTANCE = {
    # One process less, of 0.1 GB: nobody takes this machine away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray would wait for them before it answers, and for ever where they die as they start.
    "RAY_prestart_worker_first_driver": "0",
}
"""For an instance on this machine."""


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Sets the variables that nobody else has set, for the time of the block.

    What Ray itself sets in the block, for its children, is gone afterwards too.
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
