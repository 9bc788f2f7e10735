"""Disks of this machine: for the cache of decoded features and of weights, and for objects that Ray spills."""

import os
import shutil
import tempfile
from pathlib import Path

from sharelock_ray import storage
from sharelock_ray.errors import SharelockError
from sharelock_ray.features import cache
from sharelock_ray.health.check import GIB, Check, graded, refused

# Ray's default of `local_fs_capacity_threshold`: above it, it writes no objects to a disk.
_RAY_FULL = 0.95


def cache_disk() -> Check:
    """Checks that the cache can be written and has room."""
    remedy = "free space, or let SHARELOCK_CACHE name a folder on another disk (SHARELOCK_CACHE_BYTES limits its size)"
    folder = cache.cache_folder()
    try:
        with storage.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        room = min(cache.room(), cache.limit())
    except SharelockError as error:
        return refused("cache", error, remedy)
    return graded("cache", room, 20 * GIB, GIB, f"room for {room / GIB:.1f} GiB in {folder}", remedy)


def spill_disk(folder: Path | None = None) -> Check:
    """Checks that Ray can spill objects to its folder.

    Args:
        folder: of Ray's files; None: its default on this node.
    """
    folder = folder or Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    remedy = "free space on that disk, or start Ray with RAY_TMPDIR on another one"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        disk = shutil.disk_usage(folder)
    except OSError as error:
        return refused("spill", error, remedy)
    # Up to the threshold; unlike `used`, it counts the blocks that are reserved for root.
    room = disk.free - (1 - _RAY_FULL) * disk.total
    found = f"room for {max(room, 0) / GIB:.1f} GiB in {folder}, until Ray stops at {_RAY_FULL:.0%} of the disk"
    return graded("spill", room, 10 * GIB, 1, found, remedy)
