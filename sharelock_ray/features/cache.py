"""What a node keeps of feature sets beside itself: made once, then mapped by every process, run and trial of the node.

    <dataset>-<split>-<modality>-<encoder>-<content>/    one folder for each content of a set
        embeddings.bin      (N, D) of the stored type, row after row
        columns.arrow       every other column, and a hash of each key
        pairs-<content>.npz its join with the language set of that content
        *.lock, *.partial   left by whoever makes, or was interrupted in making, the file of that name

A folder's time is that of its last use. Nothing here is needed: what is removed is made again.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.manifest import Manifest


def cache_folder() -> Path:
    """Where this node keeps decoded features."""
    return storage.node_cache("features")


def room() -> int:
    """Bytes that are free on the disk of the cache."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def folder_of(manifest: Manifest) -> Path:
    """The folder of a feature set, with a name that a person recognises; sets of the same content share it."""
    parts = (manifest.dataset, manifest.split, manifest.modality, str(manifest.encoder.get("name", "encoder")))
    return cache_folder() / "-".join([*(re.sub(r"[^\w.-]+", "_", part) for part in parts), content_key(manifest)])


def content_key(manifest: Manifest) -> str:
    """Equal for sets whose decoded files are equal: what their manifests say of rows counts as much as their parts."""
    parts = [(part.sha256, part.rows, part.keys_sha256) for part in manifest.parts]
    return storage.sha256(json.dumps([manifest.dim, manifest.dtype, parts]).encode())[:16]


def made_once(target: Path, make: Callable[[Path], None], size: int | None = None) -> Path:
    """`target`, made by `make` where it is not there yet: by one process, while others that want it wait.

    It appears whole or not at all, so what an interrupted process has left is begun anew.

    Args:
        make: writes the file that it is given the path of.
        size: bytes that a whole file has, where they are known.

    Raises:
        RunError: the disk cannot hold it.
    """
    if not _is_whole(target, size):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with storage.locked(target.with_name(f"{target.name}.lock")):
                if not _is_whole(target, size):
                    _make(target, make)
        except OSError as error:
            raise RunError(
                f"{target} cannot be written ({error.strerror or error}): free space on that disk, or let the "
                f"environment variable SHARELOCK_CACHE name a folder on another one"
            ) from None
    os.utime(target.parent)
    return target


def unmade(target: Path, size: int) -> int:
    """Bytes of the disk that `made_once` has yet to take for a file of this size, whichever process makes it."""
    if _is_whole(target, size):
        return 0
    try:
        return size - min(size, _partial(target).stat().st_size)
    except FileNotFoundError:
        return 0 if _is_whole(target, size) else size


def _is_whole(target: Path, size: int | None) -> bool:
    return target.exists() and (size is None or target.stat().st_size == size)


def _make(target: Path, make: Callable[[Path], None]) -> None:
    partial = _partial(target)
    try:
        make(partial)
        # Otherwise a node that loses its power could keep the name and lose the content.
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")
