"""Disks for the cache and for spilled objects; each check is broken once."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sharelock_ray.features.cache import cache_folder
from sharelock_ray.health.check import GIB
from sharelock_ray.health.disks import cache_disk, spill_disk


def disk(monkeypatch: pytest.MonkeyPatch, free: float, total: float = 100) -> None:
    """Every disk has so many GiB."""
    usage = SimpleNamespace(free=int(free * GIB), total=int(total * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize(("free", "state"), [(50, "ok"), (5, "warn"), (0.5, "fail")])
def test_a_cache_without_room_is_said(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free)
    check = cache_disk()
    assert (check.state, check.found) == (state, f"room for {free:.1f} GiB in {cache_folder()}")
    assert ("SHARELOCK_CACHE" in check.remedy) is (state != "ok")


def test_a_limit_of_the_cache_counts_as_a_small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 50)
    monkeypatch.setenv("SHARELOCK_CACHE_BYTES", str(2 * GIB))
    assert cache_disk().state == "warn"
    monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "much")
    assert cache_disk().found == "SHARELOCK_CACHE_BYTES is 'much': give a whole number, at least 0"


def test_a_cache_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_CACHE", "/proc/none")
    check = cache_disk()
    assert check.state == "fail"
    assert check.found.startswith("/proc/none/features cannot be written")


# Ray stops at 95 % of the disk: the last 5 GiB of 100 are no room.
@pytest.mark.parametrize(("free", "state"), [(50, "ok"), (12, "warn"), (4, "fail")])
def test_a_full_disk_for_spilled_objects_is_said(
    free: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, free)
    check = spill_disk(tmp_path)
    assert (check.state, check.found.split(",")[0]) == (state, f"room for {max(free - 5, 0):.1f} GiB in {tmp_path}")


def test_a_folder_for_spilled_objects_that_is_missing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    check = spill_disk()
    assert check.state == "fail"
    assert "RAY_TMPDIR" in check.remedy
