"""Access to all filesystems by URI: reads, lists, and writes atomically.

A URI is a local path, `s3://…` or any other URI that fsspec supports; `package://<import name>/<path>` is a file inside
an installed Python package. Endpoint, credentials and region of an object store come from the environment
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, …) or the instance profile, never from a recipe: see `object_store`.

On an object store, every function raises RequestError if the bucket, the credentials or the endpoint are wrong (its
subclass ImpossibleUriError for an invalid name), and RunError if the store still fails after all retries. Writes to a
local disk raise RequestError if the path is not writable, and RunError if the disk is full or fails.
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
# Limits of one request to a web server. A list may contain thousands of servers, and some no longer exist.
_URL_ATTEMPTS = 3
_URL_S = 60.0
# Errors of the disk, as opposed to an invalid path.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_UNFINISHED = ".tmp-"
_BRACES = re.compile(r"(?<!\[)\{([^{}]*)\}(?!\])")
# The group matches an escaped character, which stands for itself.
_WILDCARD = re.compile(r"\[([*?\[{}])\]|[*?\[{]")
# Larger than the number of tars in any public data set.
_MAX_NAMED, _MAX_DIGITS = 1_000_000, 18


class NoAnswerError(RunError):
    """A web server could not be reached, even after retries."""


class ImpossibleUriError(RequestError):
    """A URI cannot exist: its protocol or package is unknown, or the store does not allow the name."""


def _filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    """The filesystem of a protocol; fsspec caches one instance per process, and drops it after a fork."""
    if protocol in ("s3", "s3a"):
        # The import takes half a second.
        from sharelock_ray.storage.object_store import ObjectStore

        return ObjectStore.from_environment()
    # Other processes may write at any time, so a cached listing would be wrong.
    options: dict[str, Any] = {"use_listings_cache": False} if protocol != "file" else {}
    problem = f"{protocol}:// is not a storage that can be used here"
    try:
        return fsspec.filesystem(protocol, **options)
    # OSError: a system library is missing.
    except (ImportError, OSError) as error:
        raise RequestError(f"{problem}: {error}") from None
    # Filesystems that need more arguments than a URI has raise various errors.
    except Exception as error:
        raise ImpossibleUriError(f"{problem}: {error}") from None


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri`, and the path on it.

    Raises:
        ImpossibleUriError: the protocol or the package is unknown.
        RequestError: the protocol needs a package that is not installed, or `uri` is a relative path and the working
            folder was deleted.
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
            f"change to an existing folder, or give an absolute path"
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
    """Whether `uri` is a path on this machine."""
    return uri.startswith(_PACKAGE) or fsspec.core.split_protocol(uri)[0] in (None, "file")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join([uri.rstrip("/") or "/", *parts])


def absolute(uri: str) -> str:
    """`uri`; a relative local path becomes absolute, so that it is valid in other processes."""
    return os.path.abspath(resolve(uri)[1]) if is_local(uri) and not uri.startswith(_PACKAGE) else uri


Uri = Annotated[str, AfterValidator(absolute)]
"""A path or URI in a recipe; a relative path becomes absolute, since workers run in other folders."""


def node_cache(kind: str) -> Path:
    """The folder of a kind of cached files on this node, in `SHARELOCK_CACHE` or else in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sharelock_ray"
    return Path(os.environ.get("SHARELOCK_CACHE", default)) / kind


def number_from_environment(variable: str, default: int, least: int) -> int:
    """The integer in an environment variable, or `default` if it is not set.

    Raises:
        RequestError: the value is not an integer or is less than `least`.
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
    """Size of the object at `uri` in bytes."""
    filesystem, path = resolve(uri)
    return int(filesystem.size(path))


def age(uri: str) -> float:
    """Seconds since the object at `uri` was last written, by this machine's clock."""
    filesystem, path = resolve(uri)
    return (datetime.now(UTC) - filesystem.modified(path)).total_seconds()


def version(uri: str) -> str:
    """A token that changes whenever the object at `uri` changes."""
    filesystem, path = resolve(uri)
    return str(filesystem.ukey(path))


def stamp(uri: str) -> tuple[int, str]:
    """Size in bytes and version (ETag or modification time) of the object at `uri`; equal on all nodes."""
    filesystem, path = resolve(uri)
    if is_local(uri):
        found = os.stat(path)
        return found.st_size, datetime.fromtimestamp(found.st_mtime, UTC).isoformat()
    about = filesystem.info(path)
    fields = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
    return int(about["size"]), next((str(about[field]) for field in fields if about.get(field)), "")


def open_read(uri: str) -> Any:
    """Opens `uri` as a binary stream; the caller closes it."""
    filesystem, path = resolve(uri)
    return filesystem.open(path, "rb")


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of the object at `uri`, or the range from `start` (inclusive) to `end` (exclusive).

    Raises:
        FileNotFoundError: there is no object.
    """
    filesystem, path = resolve(uri)
    try:
        if fsspec.core.split_protocol(uri)[0] in ("http", "https"):
            return _download(filesystem, path, start, end)
        return bytes(filesystem.cat_file(path, start=start, end=end))
    except NotADirectoryError:
        raise FileNotFoundError(f"no object at {uri}: a part of its path is a file") from None


def _download(filesystem: Any, url: str, start: int | None, end: int | None) -> bytes:
    """Downloads the bytes at a URL, with retries.

    Raises:
        NoAnswerError: the server cannot be reached, or the connection breaks.
        aiohttp.ClientResponseError: the server answers with an error `status`.
        Exception: any other error of the filesystem.
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
    """A local file with the content of the object at `uri`, valid within the block.

    A local object is not copied. Any other is downloaded to a temporary file, since random access, such as to the
    members of a tar, would cost one request per read.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        yield Path(path)
        return
    # An unnamed file: the kernel removes it when the process ends, even if it is killed.
    with tempfile.TemporaryFile(prefix="sharelock-") as copy:
        place = f"/proc/self/fd/{copy.fileno()}"
        try:
            filesystem.get_file(path, place)
        except OSError as error:
            if error.errno in _DISK_FAULTS:
                raise _one_line_error(f"a copy of {uri} in {tempfile.gettempdir()}", "written", error) from None
            raise
        yield Path(place)


def read_json(uri: str) -> Any:
    """The parsed JSON at `uri`.

    Raises:
        FileNotFoundError: there is no object.
        RunError: the content is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise RunError(f"{uri} is damaged ({error}): restore it, or delete it and run the same command again") from None


def names(folder: str) -> list[str]:
    """Sorted names of the files and folders directly in `folder`, without unfinished writes; empty without a folder."""
    filesystem, path = resolve(folder)
    try:
        entries = filesystem.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (PurePosixPath(entry).name for entry in entries)
    return sorted(name for name in found if name and not name.startswith(_UNFINISHED))


def entries(folder: str) -> dict[str, int | None]:
    """Sizes in bytes of the entries directly in `folder`, sorted by name; None for a folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    filesystem, path = resolve(folder)
    found: dict[str, int | None] = {}
    for entry in sorted(_list(filesystem, path), key=lambda entry: str(entry["name"])):
        place = entry["name"].rstrip("/")
        # An object store may list the folder's marker object.
        if place.strip("/") != path.strip("/"):
            # fsspec does not report the type of a link's target.
            folder_like = entry["type"] == "directory" or (entry["type"] != "file" and filesystem.isdir(place))
            found[PurePosixPath(place).name] = None if folder_like else int(entry["size"])
    return found


def _list(filesystem: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    for attempt in range(_ATTEMPTS):
        try:
            return list(filesystem.ls(path, detail=True))
        except FileNotFoundError:
            # Another process may have removed a file during the listing; the folder still exists.
            if attempt == _ATTEMPTS - 1 or not filesystem.exists(path):
                raise
    raise AssertionError


def write_bytes(uri: str, data: bytes) -> None:
    """Writes `data` to `uri` atomically, replacing an existing object.

    A local file is written to a temporary name, flushed to disk and renamed. An object store has no rename, but a put
    and the completion of a multipart upload are atomic.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        _publish(path, data, os.replace)
    else:
        filesystem.pipe_file(path, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Writes `data` to `uri` atomically unless an object exists; of several concurrent writers, one succeeds.

    Returns:
        Whether this call wrote the object.
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
    """Writes a file atomically with `move`; False if `move` found an existing file."""
    with writing(path):
        for _ in range(_ATTEMPTS - 1):
            # Another process may remove the folder or the temporary file during the write.
            with suppress(FileNotFoundError):
                return _write_and_move(path, data, move)
        return _write_and_move(path, data, move)


def _write_and_move(path: str, data: bytes, move: Callable[[str, str], None]) -> bool:
    """Writes a temporary file in the same folder, flushes it to disk, and moves it to `path`."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # mkstemp would make the file private; permissions must follow the umask.
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
def reading(uri: str, what: str) -> Iterator[None]:
    """Turns the errors for a missing or forbidden path into one-line errors; the block reads `uri`.

    Args:
        what: what the user named by `uri`, for errors ("recipe").

    Raises:
        RequestError: `uri` does not exist, is a folder instead of a file or the reverse, or may not be read.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RequestError(f"no {what} at {uri}: check the path") from None
    except PermissionError:
        raise RequestError(f"no permission to read {uri}: check its access rights") from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns the errors of a local write into one-line errors; the block writes the file or folder `path`.

    Raises:
        RequestError: the path is not writable.
        RunError: the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        raise _one_line_error(str(path), "written", error) from None


def _one_line_error(what: str, how: str, error: OSError) -> SharelockError:
    reason = f"{what} cannot be {how} ({error.strerror or error})"
    if error.errno in _DISK_FAULTS:
        return RunError(f"{reason}: free space on that disk, and run the same command again to continue")
    return RequestError(f"{reason}: check the path and its access rights")


def _flush_folder(folder: str) -> None:
    """Flushes a folder's entries to disk; without this, a power failure may lose a renamed file."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return  # Another process has removed the folder.
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network filesystems cannot flush a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: str) -> None:
    """Removes the temporary files of killed writes directly in a local folder; a concurrent write starts again."""
    if is_local(folder):
        for path in Path(resolve(folder)[1]).glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, _json(value))


def create_json(uri: str, value: Any) -> bool:
    """Writes `value` as JSON; same semantics as `create_bytes`."""
    return create_bytes(uri, _json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def remove(uri: str) -> None:
    """Removes the file or folder at `uri` if it exists; idempotent, also with concurrent removals."""
    filesystem, path = resolve(uri)
    # fsspec cannot remove a local folder if the working folder was deleted or is that folder.
    removal = _remove_local if is_local(uri) else partial(_remove_stored, filesystem)
    for attempt in range(_ATTEMPTS):
        if not filesystem.exists(path):
            return
        try:
            removal(path)
        except OSError as error:
            # Another process removes it too, or has just written a file into the folder.
            passing = isinstance(error, FileNotFoundError) or error.errno == errno.ENOTEMPTY
            if not passing or attempt == _ATTEMPTS - 1:
                raise _one_line_error(uri, "removed", error) from None
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
    # Most filesystems would treat the name as a pattern and remove everything that it matches.
    found = {path: filesystem.info(path)} | filesystem.find(path, withdirs=True, detail=True)
    for name in sorted(found, reverse=True):
        # On an object store, a folder disappears with its last object.
        with suppress(FileNotFoundError):
            (filesystem.rmdir if found[name]["type"] == "directory" else filesystem.rm_file)(name)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of(uri: str) -> str:
    """Hexadecimal SHA-256 of the object at `uri`, read as a stream."""
    digest = hashlib.sha256()
    with open_read(uri) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def expand(pattern: str) -> list[str]:
    """The URIs that match `pattern`: braces (`{a,b}`, `{000..123}`) are expanded first, then `*`, `?` and `[…]`.

    A pattern without wildcards is returned whether or not it exists. A wildcard in square brackets, such as `[*]` or
    `[{]`, matches itself. Matches of one wildcard pattern are sorted.

    Raises:
        RequestError: the braces expand to more than a million URIs; this is checked before the expansion.
    """
    found: list[str] = []
    # Nested braces may give duplicates.
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
    """A pattern that matches only `uri`; special characters are escaped."""
    return re.sub(r"[*?\[{}]", r"[\g<0>]", uri)


def folder_of(pattern: str) -> str:
    """The deepest folder, unescaped, that contains all matches of `pattern`; may be ""."""
    # Escaped wildcards are skipped.
    first = next((match for match in _WILDCARD.finditer(pattern) if not match[1]), None)
    fixed = pattern[: first.start()] if first else pattern
    return _WILDCARD.sub(lambda match: match[1] or match[0], fixed.rpartition("/")[0])


def has_wildcard(uri: str) -> bool:
    return any(character in uri for character in "*?[")


def _braces(pattern: str, times: int) -> Iterator[str]:
    """Expands the braces of `pattern`; `times` is the product of the alternatives of all braces expanded before."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    body = match.group(1)
    numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", body)
    choices: Iterable[str]
    if numbers:
        first, last = numbers.groups()
        # Longer numbers exceed the limit anyway, and Python refuses to parse thousands of digits.
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
