"""The CPUs of this machine, and those available to this process."""

import math
import os
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_count(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Number of CPUs that this process may use, at least 1: its affinity, limited by the quotas of its control groups
    (v1 and v2).

    Args:
        proc, cgroups: mount points of Linux's process and control group filesystems.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([here, *_quotas(proc, cgroups)])))


def is_amd(proc: Path = _PROC) -> bool:
    """Whether the processor is one of AMD's; False where the kernel does not say."""
    try:
        return "AuthenticAMD" in (proc / "cpuinfo").read_text()
    except OSError:
        return False


def _quotas(proc: Path, cgroups: Path) -> list[float]:
    """CPU quotas of this process's control groups and their ancestors; empty without a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / controllers if controllers else cgroups
        # A container sees its own group as the root, although the path may be the host's.
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            quota = _quota(top / each)
            if quota is not None:
                found.append(quota)
    return found


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{of}_us").read_text().strip() for of in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
