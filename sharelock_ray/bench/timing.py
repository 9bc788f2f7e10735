"""Helpers of the benchmarks: alternating runs, medians, peak memory, and a description of the machine."""

import importlib.metadata
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import psutil

from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import say

DType = Literal["float32", "bfloat16", "float16"]
"""Type of an encoder's forward pass."""
_VERSIONS = ("torch", "transformers", "timm", "ray", "pyarrow", "pillow")


def machine() -> str:
    """The machine and library versions, in one line."""
    import torch

    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    cpu = f"{_processor()}, {cpu_count()} cores"
    return f"{gpu}{cpu}, {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def alternate(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures each of `runs` `repeats` times in turn, so that changes of the machine's load affect all equally.

    Returns:
        the results of each run, by name, in order.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(1, repeats + 1):
        for name, run in runs.items():
            found[name].append(run())
            say(f"bench: {name}, {repeat} of {repeats}: {found[name][-1]:,.4g}")
    return found


def rate_by_cpu(work: Callable[[], int]) -> float:
    """The count returned by `work`, per second of this process's CPU time."""
    started = time.process_time()
    done = work()
    return done / (time.process_time() - started)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median ratio of ours to theirs over the rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, ru_maxrss includes the memory of the parent process at the fork.
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
