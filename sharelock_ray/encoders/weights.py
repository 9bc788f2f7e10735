"""Weights that are not of the hub: what identifies them, and where this node has them on its disk.

The hub's own client does the like for its models: one process of a node downloads a file under a lock, the others wait.
"""

import shutil
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from sharelock_ray import storage
from sharelock_ray.errors import RequestError


def weights_digest(uri: str) -> str:
    """SHA-256 of a weights file, or of a model folder's files and their names.

    Raises:
        RequestError: there is nothing at `uri`.
    """
    digests = [(name, _file_digest(path, storage.version(path))) for name, path in _files(uri).items()]
    return digests[0][1] if digests and not digests[0][0] else storage.sha256(repr(digests).encode())


def local_weights(uri: str) -> Path:
    """A path on this machine with the weights file, or model folder, at `uri`.

    That is `uri` itself where it is local, so that all processes of a node map the same pages. Else it is a copy in the
    node's cache, named by `weights_digest`: one process fetches it under a lock, the others wait, and a later run finds
    it as long as the original is the same.

    Raises:
        RequestError: there is nothing at `uri`.
    """
    if storage.is_local(uri):
        return Path(storage.resolve(uri)[1])
    files = _files(uri)
    cache = storage.node_cache("weights")
    with storage.writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    versions = [(path, storage.version(path)) for path in files.values()]
    version = storage.sha256(repr(versions).encode())[:16]
    known = cache / f"{version}.digest"
    with FileLock(cache / f"{version}.lock"):
        if not known.exists() or not (cache / known.read_text()).exists():
            digest = _fetch(files, cache / f"{version}.partial")
            storage.write_bytes(str(known), digest.encode())
        return cache / known.read_text()


def _files(uri: str) -> dict[str, str]:
    """What counts of the weights at `uri`, by its name below it; the empty name is of a single file."""
    if not storage.exists(uri):
        raise RequestError(f"no weights at {uri}: check the recipe's `weights` or `model`")
    if not storage.is_folder(uri):
        return {"": uri}
    # READMEs change nothing; any other file may.
    files = [(name, size) for name, size in storage.entries(uri).items() if size is not None]
    return {
        f"/{name}": storage.join(uri, name)
        for name, _ in files
        if not name.startswith(".") and not name.endswith(".md")
    }


@lru_cache(maxsize=256)
def _file_digest(uri: str, version: str) -> str:
    """`version` tells the cache whether the file is still the same."""
    return storage.sha256_of(uri)


def _fetch(files: dict[str, str], partial: Path) -> str:
    """Brings `files` beside `partial` under the name of their digest, whole or not at all; that digest."""
    # Left by a process that was killed: whoever holds the lock is alone with it.
    _remove(partial)
    targets = [f"{partial}{name}" for name in files]
    Path(targets[0]).parent.mkdir(parents=True, exist_ok=True)
    filesystem = storage.resolve(next(iter(files.values())))[0]
    filesystem.get([storage.resolve(path)[1] for path in files.values()], targets)
    digest = weights_digest(str(partial))
    try:
        partial.rename(partial.parent / digest)
    except OSError:  # The same weights came from another place, at the same time or before.
        _remove(partial)
    return digest


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
