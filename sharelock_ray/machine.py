"""What this process may use of the machine that it runs on."""

import math
import os
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_count(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """CPUs of this process, at least 1: those of its affinity, no more than the quota of its control groups (v1 and v2)
    lets it use at a time.

    Args:
        proc, cgroups: where Linux shows processes and control groups.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([here, *_quotas(proc, cgroups)])))


def _quotas(proc: Path, cgroups: Path) -> list[float]:
    """CPUs that the groups of this process and those around them allow; none where there is no limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / controllers if controllers else cgroups
        # A container sees its own group as the root, though its path may still be that of the host.
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
