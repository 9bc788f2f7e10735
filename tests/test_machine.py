"""CPUs and memory available to this process."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sharelock_ray import machine


def write_groups(folder: Path, groups: str | None, files: dict[str, str]) -> None:
    """Writes the files of control groups, and `groups` as those of this process."""
    contents = {f"cgroup/{name}": text for name, text in files.items()}
    for name, text in (contents | ({"proc/self/cgroup": groups} if groups else {})).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


NINE = "9:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        (None, {}, 8),
        ("0::/user/job\n", {}, 8),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000"}, 8),
        ("0::/user/job\n", {"user/job/cpu.max": "300000 100000"}, 3),
        # A part of a CPU is one that Ray may count.
        ("0::/user/job\n", {"user/job/cpu.max": "150000 100000"}, 2),
        ("0::/user/job\n", {"user/job/cpu.max": "25000 100000"}, 1),
        # The tightest of the groups around it.
        ("0::/user/job\n", {"user/cpu.max": "200000 100000", "user/job/cpu.max": "400000 100000"}, 2),
        # A container, with and without a namespace of its own.
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/docker/abc\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "3200000 100000"}, 8),
        (NINE, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "1"}, 8),
        (NINE, {"cpu,cpuacct/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 4),
        ("3:memory:/docker/abc\n", {"memory/docker/abc/cpu.max": "100000 100000"}, 8),
    ],
)
def test_is_the_least_of_affinity_and_quotas(
    groups: str | None, files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    write_groups(tmp_path, groups, files)
    assert machine.cpu_count(tmp_path / "proc", tmp_path / "cgroup") == cpus


def test_follows_the_affinity_of_this_process() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert machine.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, mine)


V2 = {"job/memory.max": "1000", "job/memory.current": "900", "job/memory.stat": "anon 600\ninactive_file 300\n"}
V1 = {
    "memory/job/memory.limit_in_bytes": "1000\n",
    "memory/job/memory.usage_in_bytes": "900\n",
    "memory/job/memory.stat": "total_inactive_file 300\n",
}


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        (None, {}, 5000),
        ("0::/job\n", V2, 400),
        ("0::/job\n", V2 | {"job/memory.max": "max"}, 5000),
        ("0::/job\n", V2 | {"job/memory.stat": "damaged"}, 5000),
        ("9:memory:/job\n", V1, 400),
        # No limit is a large number in v1.
        ("9:memory:/job\n", V1 | {"memory/job/memory.limit_in_bytes": str(1 << 62)}, 5000),
        ("9:cpu:/job\n", V1, 5000),
        ("0::/job\n", V2 | {"job/memory.current": "2000"}, 0),
    ],
)
def test_free_memory_is_within_the_limits_of_the_groups(
    groups: str | None, files: dict[str, str], free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    write_groups(tmp_path, groups, files)
    assert machine.free_memory(tmp_path / "proc", tmp_path / "cgroup") == free


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False), (None, False)])
def test_the_maker_of_the_processor_is_known(vendor: str | None, expected: bool, tmp_path: Path) -> None:
    if vendor:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert machine.is_amd(tmp_path) is expected
