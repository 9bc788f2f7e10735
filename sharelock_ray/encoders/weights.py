"""Weights that do not come from the hub: their digest, and this node's copy of them.

As the hub's client does for its models, one process per node downloads a file under a lock while the others wait.
"""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from sharelock_ray import storage
from sharelock_ray.errors import RequestError


def weights_digest(uri: str) -> str:
    """Returns the SHA-256 of a weights file, or of the files and names in a model folder.

    Raises:
        RequestError: `uri` does not exist.
    """
    digests = [(name, _file_digest(path, storage.version(path))) for name, path in _files(uri).items()]
    return digests[0][1] if digests and not digests[0][0] else storage.sha256(repr(digests).encode())


def local_weights(uri: str) -> Path:
    """Returns a local path of the weights file or model folder at `uri`.

    A local `uri` is returned as it is, so that all processes of a node map the same pages. A remote one is copied into
    the node's cache under the name of its `weights_digest`: one process downloads it under a lock while the others
    wait. Later runs reuse the copy until the original changes.

    Raises:
        RequestError: `uri` does not exist.
    """
    files = _files(uri)
    if storage.is_local(uri):
        return Path(storage.resolve(uri)[1])
    versions = [(path, storage.version(path)) for path in files.values()]
    return kept(repr(versions), lambda place: _fetch(files, place))


def kept(key: str, make: Callable[[Path], str]) -> Path:
    """Returns the file or folder in this node's cache that was made for `key`.

    Args:
        key: changes when the content does.
        make: writes the file or folder at a path, and returns the name that it shall have in the cache. One process
            calls it under a lock while the others wait.
    """
    cache = storage.node_cache("weights")
    with storage.writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    version = storage.sha256(key.encode())[:16]
    known, partial = cache / f"{version}.digest", cache / f"{version}.partial"
    with FileLock(cache / f"{version}.lock"):
        if not known.exists() or not (cache / known.read_text()).exists():
            # Left by a killed process; the lock guarantees that no other process uses it.
            _remove(partial)
            name = make(partial)
            try:
                partial.rename(cache / name)
            except OSError:  # The same was made for another key.
                _remove(partial)
            storage.write_bytes(str(known), name.encode())
        return cache / known.read_text()


def _files(uri: str) -> dict[str, str]:
    """Returns the files at `uri` by their name below it; a single file has the empty name."""
    if not storage.exists(uri):
        raise RequestError(f"no weights at {uri}: check the recipe's `weights` or `model`")
    if not storage.is_folder(uri):
        return {"": uri}
    # Any file except a README can change the embeddings.
    files = [(name, size) for name, size in storage.entries(uri).items() if size is not None]
    return {
        f"/{name}": storage.join(uri, name)
        for name, _ in files
        if not name.startswith(".") and not name.endswith(".md")
    }


@lru_cache(maxsize=256)
def _file_digest(uri: str, version: str) -> str:
    """Returns a file's SHA-256; `version` is only a part of the cache's key."""
    return storage.sha256_of(uri)


def _fetch(files: dict[str, str], place: Path) -> str:
    """Downloads `files` to `place`, and returns their digest."""
    targets = [f"{place}{name}" for name in files]
    Path(targets[0]).parent.mkdir(parents=True, exist_ok=True)
    filesystem = storage.resolve(next(iter(files.values())))[0]
    filesystem.get([storage.resolve(path)[1] for path in files.values()], targets)
    return weights_digest(str(place))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
