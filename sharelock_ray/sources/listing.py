"""Functions shared by the readers: listing files as shards, and converting record values to sample fields."""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject, Sample, Shard, escaped

_PARALLEL_SIZES = 16
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors write before UTF-8 text."""
# Errors of a single path. Others, such as EIO or EMFILE, concern the machine.
_PATH_ERRNOS = frozenset(
    {errno.EACCES, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO, errno.EPERM}
)
# Keeps one sample from filling the memory.
MAX_IMAGE_BYTES = 256 << 20
# Limits per sample: each caption becomes a row and costs encoder time.
MAX_TEXT_BYTES = 1 << 20
MAX_CAPTIONS = 1000


class NoPlainFileError(ValueError):
    """A path names a device, a pipe or a socket instead of a regular file."""


class TooLargeError(ValueError):
    """An image, or the captions of a sample, exceed the size limit."""


def file_shards(urls: tuple[str, ...] | str, kind: str, ending: str) -> list[Shard]:
    """One shard per file that matches the patterns, sorted by name; names are unique.

    Args:
        urls: absolute URIs or patterns, as recipes resolve them.
        kind: name of the file type, for errors.
        ending: regular expression; its match at the end of a path is removed from the name.

    Raises:
        RequestError: a pattern matches nothing, a file is missing, or two files would have the same name.
    """
    named: dict[str, str] = {}
    for pattern in (urls,) if isinstance(urls, str) else urls:
        uris = storage.expand(pattern)
        if not uris:
            raise RequestError(f"no {kind} matches {pattern!r}: check the path, and quote it in the shell")
        for uri in uris:
            name = _name(uri, pattern, ending)
            if named.setdefault(name, uri) != uri:
                raise RequestError(f"{named[name]} and {uri} have the same name {name!r}: match both by one pattern")

    def stamp(uri: str) -> tuple[int, str]:
        with storage.reading(uri, kind):
            return storage.stamp(uri)

    # Each file is one request to an object store.
    with ThreadPoolExecutor(_PARALLEL_SIZES) as pool:
        stamps = list(pool.map(stamp, (uri for _, uri in sorted(named.items()))))
    return [
        Shard(index, name, uri, found[0], _version(found))
        for index, ((name, uri), found) in enumerate(zip(sorted(named.items()), stamps, strict=True))
    ]


def file_version(uri: str) -> str:
    """The version of a shard that is stored in the file at `uri`."""
    return _version(storage.stamp(uri))


def _version(stamp: tuple[int, str]) -> str:
    return f"{stamp[0]:,} bytes of {stamp[1]}"


def _name(uri: str, pattern: str, ending: str) -> str:
    """Path of the file, without its ending, relative to the folder before the pattern's first wildcard."""
    folder = storage.resolve(storage.folder_of(pattern) or ".")[1]
    return re.sub(f"{ending}$", "", storage.resolve(uri)[1].removeprefix(folder).lstrip("/"))


def sample_key(shard: Shard, name: object) -> str:
    """The key of the sample `name` of a shard; unprintable characters are escaped."""
    return escaped(f"{shard.name}/{name}")


def row_name(row: int) -> str:
    """The name of a row without a key column."""
    return f"{row:09d}"


def unique(items: Iterable[Sample | Reject]) -> Iterator[Sample | Reject]:
    """Yields the items of a shard; an item with an earlier item's key becomes a reject."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            yield Reject(item.key, "read", DUPLICATE_KEY, "the shard has this key more than once")
            continue
        seen.add(item.key)
        yield item


def matching_column(name: str, columns: Collection[str]) -> str | None:
    """The column with this name; without an exact match, case and surrounding white space are ignored."""
    if name in columns:
        return name
    return next((column for column in columns if column.strip().casefold() == name.strip().casefold()), None)


def value(record: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> Any:
    """A record's value in `column`, or the first non-empty value of the columns `usual`; None if there is none.

    Args:
        column: None to search `usual`; "" to disable the field.
    """
    names = usual if column is None else (column,) if column else ()
    found = (record[place] for name in names if (place := matching_column(name, record)) is not None)
    return next((each for each in found if each not in (None, "", [])), None)


def captions(found: object) -> tuple[str, ...]:
    """The non-empty texts of `found`, which is a text or a list of texts.

    Raises:
        ValueError: a text is not valid Unicode.
        TooLargeError: the texts exceed the limits of a sample.
    """
    texts = [
        text.removeprefix("\ufeff").strip()
        for text in (found if isinstance(found, list) else [found])
        if isinstance(text, str)
    ]
    # `encode` raises UnicodeEncodeError for lone surrogates, which JSON allows.
    check_captions(len(texts), sum(len(text.encode()) for text in texts))
    return tuple(text for text in texts if text)


def check_captions(count: int, size: int) -> None:
    """Raises TooLargeError if a sample has too many captions, or too many bytes of UTF-8 in all captions together."""
    if count > MAX_CAPTIONS:
        raise TooLargeError(f"{count:,} captions exceed the limit of {MAX_CAPTIONS:,}")
    if size > MAX_TEXT_BYTES:
        raise TooLargeError(f"the captions have {size:,} bytes in total, more than {MAX_TEXT_BYTES:,}")


def read_image(uri: str) -> bytes:
    """The bytes of the image file at `uri`.

    Raises:
        NoPlainFileError: it is a device, a pipe or a socket; a read might never return.
        TooLargeError: it has more than `MAX_IMAGE_BYTES`.
    """
    if storage.is_local(uri):
        mode = os.stat(storage.resolve(uri)[1]).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise NoPlainFileError(f"{uri} is not a regular file but a device, a pipe or a socket")
    try:
        # Asking for the size would be one more request to an object store.
        data = storage.read_bytes(uri, 0, MAX_IMAGE_BYTES + 1)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Object stores reject a range request for an empty object.
        data = storage.read_bytes(uri)
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLargeError(f"{uri} has more than {MAX_IMAGE_BYTES:,} bytes")
    return data


def raise_unless_its_own(error: Exception) -> None:
    """Re-raises a read error unless the file itself is at fault.

    Other errors are those of the storage. They end the run, and the next run continues once the storage works.
    """
    if isinstance(error, OSError):
        absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        its_own = absent or error.errno in _PATH_ERRNOS
    else:
        # A web server's answer about one path, except for authentication, time-out and rate limit.
        status = getattr(error, "status", 0)
        answered = isinstance(status, int) and 300 <= status < 500 and status not in (401, 403, 407, 408, 429)
        its_own = answered or isinstance(error, ValueError | storage.ImpossibleUriError)
    if not its_own:
        raise error


def class_label(found: str | bytes | int) -> int | None:
    """The class index; None for -1, which marks unlabelled images in Hugging Face's data sets.

    Raises:
        ValueError: it is not an integer or does not fit int32.
    """
    label = int(found)
    if not -(2**31) <= label < 2**31:
        raise ValueError(f"label {label} does not fit int32")
    return None if label == -1 else label
