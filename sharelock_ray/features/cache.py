"""The node's cache of decoded feature sets, mapped into memory by every process of the node.

    <dataset>-<split>-<modality>-<encoder>-<content>/    one folder per content of a set
        embeddings.bin      (N, D) of the stored type, row-major
        columns.arrow       all other columns, and a hash of each key
        pairs-<content>.npz its join with the language set of that content
        *.lock, *.partial   of a process that creates the file of that name, or was interrupted
        in-use              locked by each process that has the set open

A folder's modification time is its last use. Everything here can be recreated. Before a file is created, the least
recently used sets that no process has open are removed until the cache is within its limit and the disk has space.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.manifest import Manifest

LIMIT = "SHARELOCK_CACHE_BYTES"
_IN_USE = "in-use"
# Other files in a folder chosen by the user are left alone.
_FOLDERS = f"*-{'[0-9a-f]' * 16}"
_OURS = re.compile(r"(embeddings\.bin|columns\.arrow|pairs-[0-9a-f]{16}\.npz)(\.lock|\.partial)?")


def cache_folder() -> Path:
    """This node's folder of decoded features."""
    return storage.node_cache("features")


def limit() -> int:
    """Limit of the cache in bytes; sets that are open may exceed it."""
    return storage.number_from_environment(LIMIT, default=_disk().total // 2, least=0)


def room() -> int:
    """Bytes of the cache's disk that are free or can be freed by removing sets that no process has open."""
    return _disk().free + sum(each.size for each in _kept() if not each.is_in_use)


def _disk() -> Any:
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder)


def folder_of(manifest: Manifest) -> Path:
    """The folder of a feature set, with a readable name; sets of equal content share it."""
    parts = (manifest.dataset, manifest.split, manifest.modality, str(manifest.encoder.get("name", "encoder")))
    return cache_folder() / "-".join([*(re.sub(r"[^\w.-]+", "_", part) for part in parts), content_key(manifest)])


def content_key(manifest: Manifest) -> str:
    """Hash that is equal for sets with equal decoded files; it covers row counts and keys as well as the parts."""
    parts = [(part.sha256, part.rows, part.keys_sha256) for part in manifest.parts]
    return storage.sha256(json.dumps([manifest.dim, manifest.dtype, parts]).encode())[:16]


def in_use(folder: Path) -> IO[str]:
    """Creates a set's folder if missing, and protects it from removal while the returned file is open.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    path = folder / _IN_USE
    with _refusals_named(path):
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                stream = path.open("a")
                fcntl.flock(stream, fcntl.LOCK_SH)
                # Otherwise the file was removed before it was locked.
                if _is_at(stream, path):
                    return stream
                stream.close()


def made_once(target: Path, make: Callable[[Path], None], size: int | None = None) -> Path:
    """Creates `target` if missing; one process creates it, others wait. The file appears atomically.

    Args:
        make: writes the file at the path that it is given.
        size: size of the complete file in bytes, if known.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    with _refusals_named(target):
        if not _is_whole(target, size):
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_name(f"{target.name}.lock")):
                if not _is_whole(target, size):
                    _make_room(unmade(target, size or 0))
                    _make(target, make)
        os.utime(target.parent)
    return target


@contextmanager
def _refusals_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror or error}): free space on that disk, or let the "
            f"environment variable SHARELOCK_CACHE name a folder on another one"
        ) from None


def unmade(target: Path, size: int) -> int:
    """Bytes that `made_once` still needs for a file of this size, whichever process creates it."""
    if _is_whole(target, size):
        return 0
    try:
        return size - min(size, _partial(target).stat().st_size)
    except FileNotFoundError:
        return 0 if _is_whole(target, size) else size


def _make_room(needed: int) -> None:
    """Removes sets that no process has open, least recently used first, until `needed` bytes fit into the limit and the
    disk."""
    kept = sorted(_kept(), key=lambda each: each.used)
    excess = max(sum(each.size for each in kept) + needed - limit(), needed - _disk().free)
    for each in kept:
        if excess <= 0:
            return
        if each.remove():
            excess -= each.size


def _kept() -> list["_Kept"]:
    """The sets in the cache; other processes may remove them at any time."""
    found = []
    for folder in cache_folder().glob(_FOLDERS):
        with suppress(OSError):
            files = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
            found.append(_Kept(folder, files, sum(path.stat().st_size for path in files), folder.stat().st_mtime))
    return found


@dataclass(frozen=True)
class _Kept:
    """A set in the cache: its files, their total bytes, and the Unix time of the last use."""

    folder: Path
    files: list[Path]
    size: int
    used: float

    @property
    def is_in_use(self) -> bool:
        return not self._alone(lambda: None)

    def remove(self) -> bool:
        """Removes the set unless a process has it open or another user owns it; returns whether it did."""
        return self._alone(self._unlink)

    def _unlink(self) -> None:
        for path in [*self.files, self.folder / _IN_USE]:
            path.unlink(missing_ok=True)
        # Files of others stay.
        with suppress(OSError):
            self.folder.rmdir()

    def _alone(self, work: Callable[[], None]) -> bool:
        """Runs `work` while no process can open the set; returns False if the set is open or the disk refuses."""
        try:
            with (self.folder / _IN_USE).open("a") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(stream, self.folder / _IN_USE):
                    return False
                work()
        except OSError:
            return False
        return True


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether `path` still names this open file, not a later one."""
    return os.path.samestat(os.fstat(stream.fileno()), path.stat())


def _is_whole(target: Path, size: int | None) -> bool:
    return target.exists() and (size is None or target.stat().st_size == size)


def _make(target: Path, make: Callable[[Path], None]) -> None:
    partial = _partial(target)
    try:
        make(partial)
        # Otherwise a power failure could keep the name and lose the content.
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")
