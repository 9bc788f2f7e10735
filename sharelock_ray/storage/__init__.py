"""One place for filesystems: resolves a URI, reads, and publishes objects whole or not at all.

A URI is a local path, `s3://…` or anything else that fsspec knows; `package://<import name>/<path>` is a file that an
installed Python package carries. Endpoint, credentials and region of an object store come from the environment
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, …) or the instance profile, never from a recipe: see `object_store`.

Of an object store, each function raises RequestError where the bucket, the credentials or the endpoint are wrong (its
own kind ImpossibleUriError where the name is), and RunError where it still fails after all repetitions. What writes to
a local disk raises RequestError where the place is wrong, and RunError where the disk is full or broken.
"""

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import fsspec
import fsspec.asyn
from pydantic import AfterValidator

from sharelock_ray.errors import RequestError, RunError, SharelockError

_PACKAGE = "package://"
_ATTEMPTS = 20
_PAUSE_S = 0.05
# Of one request to a web server. A list may name thousands of them, of which some are dead.
_URL_ATTEMPTS = 3
_URL_S = 60.0
# The disk's fault, not that of whoever named a place on it.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_UNFINISHED = ".tmp-"
_BRACES = re.compile(r"(?<!\[)\{([^{}]*)\}(?!\])")
# With what it stands for, where that is itself.
_WILDCARD = re.compile(r"\[([*?\[{}])\]|[*?\[{]")
# The largest public set of tars has less.
_MAX_NAMED, _MAX_DIGITS = 1_000_000, 18


class NoAnswerError(RunError):
    """A web server could not be reached, again and again."""


class ImpossibleUriError(RequestError):
    """Nothing can ever be at a URI: no such protocol or package, or a name that the store gives to no object."""


def _filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    """The filesystem of a protocol; fsspec itself keeps one of each in a process, and none across a fork."""
    if protocol in ("s3", "s3a"):
        # Takes half a second to import.
        from sharelock_ray.storage.object_store import ObjectStore

        return ObjectStore.from_environment()
    # Another process may write at any time, so a remembered listing would be wrong.
    options: dict[str, Any] = {"use_listings_cache": False} if protocol != "file" else {}
    problem = f"{protocol}:// is not a storage that can be used here"
    try:
        return fsspec.filesystem(protocol, **options)
    # The second where it wants a library of the system.
    except (ImportError, OSError) as error:
        raise RequestError(f"{problem}: {error}") from None
    # It wants more than a URI says, and each says so in its own way.
    except Exception as error:
        raise ImpossibleUriError(f"{problem}: {error}") from None


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem that holds `uri`, and the path of `uri` on it.

    Raises:
        ImpossibleUriError: the protocol or the package is unknown.
        RequestError: the package that the protocol needs is not installed, or `uri` is a relative path and the
            working folder was deleted.
    """
    if uri.startswith(_PACKAGE):
        return _filesystem("file"), str(package_path(uri))
    protocol, path = fsspec.core.split_protocol(uri)
    filesystem = _filesystem(protocol or "file")
    try:
        return filesystem, filesystem._strip_protocol(path if protocol in (None, "file") else uri)
    except FileNotFoundError:
        raise RequestError(
            f"{uri} is relative to the working folder of this process, which was deleted: "
            f"change to a folder that exists, or give an absolute path"
        ) from None


def package_path(uri: str) -> Path:
    """The local path of a `package://` URI."""
    name, _, inside = uri.removeprefix(_PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ImpossibleUriError(f"{uri}: no Python package {name!r} is installed")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def is_local(uri: str) -> bool:
    """True where `uri` lies on this machine's own disk."""
    return uri.startswith(_PACKAGE) or fsspec.core.split_protocol(uri)[0] in (None, "file")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join([uri.rstrip("/") or "/", *parts])


def absolute(uri: str) -> str:
    """`uri`, with a relative local path made absolute so that another process finds it too."""
    return os.path.abspath(resolve(uri)[1]) if is_local(uri) and not uri.startswith(_PACKAGE) else uri


Uri = Annotated[str, AfterValidator(absolute)]
"""A path or URI in a recipe; a relative path is made absolute, since workers have folders of their own."""


def node_cache(kind: str) -> Path:
    """Where this node keeps what it need not fetch or make twice: in `SHARELOCK_CACHE`, or in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sharelock_ray"
    return Path(os.environ.get("SHARELOCK_CACHE", default)) / kind


def number_from_environment(variable: str, default: int, least: int) -> int:
    """The whole number in an environment variable.

    Raises:
        RequestError: it is none, or less than `least`.
    """
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise RequestError(f"{variable} is {text!r}: give a whole number, at least {least}")
    return int(text)


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.isdir(path))


def size(uri: str) -> int:
    """Bytes of the object at `uri`."""
    filesystem, path = resolve(uri)
    return int(filesystem.size(path))


def age(uri: str) -> float:
    """Seconds since the object at `uri` was last written, by this machine's clock."""
    filesystem, path = resolve(uri)
    return (datetime.now(UTC) - filesystem.modified(path)).total_seconds()


def version(uri: str) -> str:
    """Changes when the object at `uri` does."""
    filesystem, path = resolve(uri)
    return str(filesystem.ukey(path))


def stamp(uri: str) -> tuple[int, str]:
    """Bytes of the object at `uri`, and what tells it from another one in its place: its ETag, or when it was written.

    The same on every node that sees the object.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        found = os.stat(path)
        return found.st_size, datetime.fromtimestamp(found.st_mtime, UTC).isoformat()
    about = filesystem.info(path)
    fields = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
    return int(about["size"]), next((str(about[field]) for field in fields if about.get(field)), "")


def open_read(uri: str) -> Any:
    """A binary stream that reads `uri`; the caller closes it."""
    filesystem, path = resolve(uri)
    return filesystem.open(path, "rb")


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The object at `uri`, or its bytes from `start` to before `end`."""
    filesystem, path = resolve(uri)
    try:
        if fsspec.core.split_protocol(uri)[0] in ("http", "https"):
            return _fetched(filesystem, path, start, end)
        return bytes(filesystem.cat_file(path, start=start, end=end))
    except NotADirectoryError:
        raise FileNotFoundError(f"no object at {uri}: a part of its path is a file") from None


def _fetched(filesystem: Any, url: str, start: int | None, end: int | None) -> bytes:
    """The bytes at a URL, asked for a few times.

    Raises:
        NoAnswerError: the server cannot be reached, or breaks off.
        Exception: what it answers, an error of aiohttp's with its `status`.
    """
    import aiohttp

    from sharelock_ray.storage.retry import ExhaustedError, RetryPolicy

    def transient(error: Exception) -> bool:
        status = getattr(error, "status", None)
        if isinstance(error, aiohttp.ClientResponseError):
            return status in (408, 429) or (status or 0) >= 500
        return isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)

    async def attempt() -> bytes:
        return bytes(await filesystem._cat_file(url, start=start, end=end))

    try:
        policy = RetryPolicy(attempts=_URL_ATTEMPTS, total_s=_URL_S)
        return fsspec.asyn.sync(filesystem.loop, policy.run, attempt, transient)[0]
    except ExhaustedError as error:
        if isinstance(error.__cause__, aiohttp.ClientResponseError):
            raise error.__cause__ from None
        why = " ".join(str(error.__cause__).split()) or type(error.__cause__).__name__
        raise NoAnswerError(f"{url} still fails after {error} ({why})") from None


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local file with the content of the object at `uri`, for the time of the block.

    That is the object itself where it is local, else a temporary download: what is read here and there, as the members
    of a tar are, would cost an object store a request each.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        yield Path(path)
        return
    # A file without a name, which ends with the process, however that ends.
    with tempfile.TemporaryFile(prefix="sharelock-") as copy:
        place = f"/proc/self/fd/{copy.fileno()}"
        try:
            filesystem.get_file(path, place)
        except OSError as error:
            if error.errno in _DISK_FAULTS:
                raise _refusal(f"a copy of {uri} in {tempfile.gettempdir()}", "written", error) from None
            raise
        yield Path(place)


def read_json(uri: str) -> Any:
    """The value that the JSON at `uri` stands for.

    Raises:
        FileNotFoundError: there is no object.
        RunError: it is no JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise RunError(f"{uri} is damaged ({error}): restore it, or delete it and run the same command again") from None


def names(folder: str) -> list[str]:
    """Sorted names of what lies directly in `folder`; empty where there is no such folder.

    Names of unfinished local writes are left out.
    """
    filesystem, path = resolve(folder)
    try:
        entries = filesystem.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (PurePosixPath(entry).name for entry in entries)
    return sorted(name for name in found if name and not name.startswith(_UNFINISHED))


def entries(folder: str) -> dict[str, int | None]:
    """What lies directly in `folder`, sorted by name: the size of each file, None for a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    filesystem, path = resolve(folder)
    found: dict[str, int | None] = {}
    for entry in sorted(_listed(filesystem, path), key=lambda entry: str(entry["name"])):
        place = entry["name"].rstrip("/")
        # An object store may list the folder's own marker.
        if place.strip("/") != path.strip("/"):
            # The type of a link says nothing of what it points to.
            folder_like = entry["type"] == "directory" or (entry["type"] != "file" and filesystem.isdir(place))
            found[PurePosixPath(place).name] = None if folder_like else int(entry["size"])
    return found


def _listed(filesystem: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    for attempt in range(_ATTEMPTS):
        try:
            return list(filesystem.ls(path, detail=True))
        except FileNotFoundError:
            # A file that another process has removed meanwhile is no missing folder.
            if attempt == _ATTEMPTS - 1 or not filesystem.exists(path):
                raise
    raise AssertionError


def write_bytes(uri: str, data: bytes) -> None:
    """Publishes `data` at `uri` whole or not at all, replacing what was there.

    A local file is written beside its place, flushed to disk and renamed; an object store has no rename, but a put, or
    the completion of an upload in parts, is atomic there.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        _publish(path, data, os.replace)
    else:
        filesystem.pipe_file(path, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Publishes `data` at `uri` whole or not at all, unless something is there already; of several writers one wins.

    Returns:
        whether this call published it.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        return _publish(path, data, os.link)
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def _publish(path: str, data: bytes, move: Callable[[str, str], None]) -> bool:
    """Has `move` put a file at `path`; whether it did, and met none there that it leaves alone."""
    with writing(path):
        for _ in range(_ATTEMPTS - 1):
            # Another process may remove the folder, or the unfinished file, under our hands.
            with suppress(FileNotFoundError):
                return _written(path, data, move)
        return _written(path, data, move)


def _written(path: str, data: bytes, move: Callable[[str, str], None]) -> bool:
    """Writes a file beside `path`, flushed to disk, and moves it there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # Not by mkstemp, whose files are for their owner alone: the umask says who may read what is published.
    temporary = os.path.join(folder, f"{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            move(temporary, path)
        except FileExistsError:
            return False
        _flush_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    return True


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Says in one line what the disk answers to the block, which writes the local file or folder `path`.

    Raises:
        RequestError: nothing can be written there.
        RunError: the disk is full, or fails.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(str(path), "written", error) from None


def _refusal(what: str, how: str, error: OSError) -> SharelockError:
    reason = f"{what} cannot be {how} ({error.strerror or error})"
    if error.errno in _DISK_FAULTS:
        return RunError(f"{reason}: free space on that disk, and run the same command again to continue")
    return RequestError(f"{reason}: check the path, and who may write there")


def _flush_folder(folder: str) -> None:
    """Has the disk keep the names in a folder too: without that a loss of power takes a file that was published."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return  # Another process has removed it with what was published.
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network filesystems flush no folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: str) -> None:
    """Removes what killed writes have left directly in a local folder; a write that is under way begins again."""
    if is_local(folder):
        for path in Path(resolve(folder)[1]).glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, _json(value))


def create_json(uri: str, value: Any) -> bool:
    """As `create_bytes`."""
    return create_bytes(uri, _json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def remove(uri: str) -> None:
    """Removes the file or folder at `uri`; nothing happens where there is none, also where another removes it now."""
    filesystem, path = resolve(uri)
    # fsspec's own removal of a local folder fails where the working folder was deleted, or is that folder.
    removal = _remove_local if is_local(uri) else partial(_remove_stored, filesystem)
    for attempt in range(_ATTEMPTS):
        if not filesystem.exists(path):
            return
        try:
            removal(path)
        except OSError as error:
            # Another process removes it too, or has put a file into the folder meanwhile.
            passing = isinstance(error, FileNotFoundError) or error.errno == errno.ENOTEMPTY
            if not passing or attempt == _ATTEMPTS - 1:
                raise _refusal(uri, "removed", error) from None
            time.sleep(_PAUSE_S)


def _remove_local(path: str) -> None:
    if not os.path.isdir(path) or os.path.islink(path):
        os.unlink(path)
        return

    def raise_unless_gone(_call: object, _path: str, fault: tuple[Any, BaseException, Any]) -> None:
        if not isinstance(fault[1], FileNotFoundError):
            raise fault[1]

    shutil.rmtree(path, onerror=raise_unless_gone)


def _remove_stored(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    if not has_wildcard(path):
        filesystem.rm(path, recursive=True)
        return
    # Most filesystems would take the name for a pattern, and remove whatever else it matches.
    found = {path: filesystem.info(path)} | filesystem.find(path, withdirs=True, detail=True)
    for name in sorted(found, reverse=True):
        # An object store has no folders: they are gone with what was in them.
        with suppress(FileNotFoundError):
            (filesystem.rmdir if found[name]["type"] == "directory" else filesystem.rm_file)(name)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(uri: str) -> str:
    """SHA-256 of the object at `uri`, read as a stream."""
    digest = hashlib.sha256()
    with open_read(uri) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def expand(pattern: str) -> list[str]:
    """The URIs that `pattern` names, sorted: `{a,b}` and `{000..123}` braces first, then `*`, `?` and `[…]`.

    A pattern without wildcards names itself, whether or not it exists; a wildcard in square brackets, as in `[*]` or
    `[{]`, stands for itself.

    Raises:
        RequestError: the braces name more than a million URIs; none of them is made.
    """
    found: list[str] = []
    # Nested braces may name the same thing twice.
    for uri in dict.fromkeys(_braces(pattern, 1)):
        if not has_wildcard(uri):
            found.append(uri)
            continue
        filesystem, path = resolve(uri)
        found += [
            match if is_local(uri) else filesystem.unstrip_protocol(match) for match in sorted(filesystem.glob(path))
        ]
    return found


def escape(uri: str) -> str:
    """A pattern that names `uri` alone, whatever characters it has."""
    return re.sub(r"[*?\[{}]", r"[\g<0>]", uri)


def folder_of(pattern: str) -> str:
    """The folder up to which `pattern` has no wildcard, so that all that it names is below it; maybe ""."""
    # An escaped wildcard is none.
    first = next((match for match in _WILDCARD.finditer(pattern) if not match[1]), None)
    fixed = pattern[: first.start()] if first else pattern
    return _WILDCARD.sub(lambda match: match[1] or match[0], fixed.rpartition("/")[0])


def has_wildcard(uri: str) -> bool:
    return any(character in uri for character in "*?[")


def _braces(pattern: str, times: int) -> Iterator[str]:
    """What the braces of `pattern`, of which there are `times`, name."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    body = match.group(1)
    numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", body)
    choices: Iterable[str]
    if numbers:
        first, last = numbers.groups()
        # Longer ones are no numbers of files, and Python reads none of thousands of digits.
        known = max(len(first), len(last)) < _MAX_DIGITS
        of_range = range(int(first), int(last) + 1) if known else range(_MAX_NAMED + 1)
        count, choices = len(of_range), (str(number).zfill(len(first)) for number in of_range)
    else:
        choices = body.split(",")
        count = len(choices)
    if count * times > _MAX_NAMED:
        raise RequestError(f"the braces of {pattern!r} name more than {_MAX_NAMED:,} files: check their numbers")
    for choice in choices:
        yield from _braces(pattern[: match.start()] + choice + pattern[match.end() :], count * times)
