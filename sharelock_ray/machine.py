"""The CPUs and the memory of this machine, and those available to this process."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_count(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Number of CPUs that this process may use, at least 1: its affinity, limited by the quotas of its control groups
    (v1 and v2).

    Args:
        proc, cgroups: mount points of Linux's process and control group filesystems.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([here, *_quotas(proc, cgroups)])))


def free_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes of memory that processes can still take: those available on the machine, within the limits of this
    process's control groups (v1 and v2). Cached pages of files count as free, since the kernel drops them."""
    rooms = [room for group in _groups("memory", proc, cgroups) if (room := _room(group)) is not None]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def is_amd(proc: Path = _PROC) -> bool:
    """Whether the processor is one of AMD's; False where the kernel does not say."""
    try:
        return "AuthenticAMD" in (proc / "cpuinfo").read_text()
    except OSError:
        return False


def _quotas(proc: Path, cgroups: Path) -> list[float]:
    """CPU quotas of this process's control groups and their ancestors; empty without a limit."""
    return [quota for group in _groups("cpu", proc, cgroups) if (quota := _quota(group)) is not None]


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Folders of this process's control groups that a controller (v1) or the unified hierarchy (v2) may limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        top = cgroups / controllers if controllers else cgroups
        # A container sees its own group as the root, although the path may be the host's.
        group = Path(path.lstrip("/"))
        for each in (group, *group.parents):
            yield top / each


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{of}_us").read_text().strip() for of in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _room(group: Path) -> int | None:
    """Bytes between a group's use of memory and its limit; None without a limit."""
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for limit, used, cached in (("memory.max", "memory.current", "inactive_file"), v1):
        try:
            stated = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            most, taken = ((group / name).read_text().strip() for name in (limit, used))
            return None if most == "max" else int(most) - int(taken) + int(stated[cached])
        except (OSError, ValueError, KeyError):
            continue
    return None
