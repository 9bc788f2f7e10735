"""What Ray reads from the environment as it is imported. `engine` imports this first, and is imported before ray.

Ray's own bars, chatter and usage report are not the user's output; its workers run at normal niceness, since at Ray's
default of 15 they starve beside any other process.
"""

import os
import secrets
import sys

_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Training workers stay in the driver's folder, so that a path means the same everywhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Otherwise each thread's own heap grows to tens of MB in every worker.
    "MALLOC_ARENA_MAX": "2",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# An instance of our own answers to nobody else; a cluster has its own rules. Ray's driver reads the mode as it is
# imported and its servers as they start, so a change in between, in a notebook, would set them at odds.
if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # One process less, of 0.1 GB: nobody takes this machine away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
