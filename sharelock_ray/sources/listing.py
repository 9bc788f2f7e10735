"""What all readers share: naming files as shards, and turning what a record holds into a sample's fields."""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject, Sample, Shard, printable

_PARALLEL_SIZES = 16
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
BOM = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8 text."""
# Faults of one path. Any other, such as EIO or EMFILE, is the machine's.
_PATH_ERRNOS = frozenset(
    {errno.EACCES, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO, errno.EPERM}
)
# No picture needs more; reading a file whole that says it has would let one sample fill the memory.
MAX_IMAGE_BYTES = 256 << 20
# Of one sample. Texts beyond this are no captions, and each of them is a row that takes an encoder's time.
MAX_TEXT_BYTES = 1 << 20
MAX_CAPTIONS = 1000


class NoPlainFileError(ValueError):
    """What has the name of a file and is none."""


class TooLargeError(ValueError):
    """An image, or the captions of a sample, beyond all measure."""


def file_shards(urls: tuple[str, ...] | str, kind: str, ending: str) -> list[Shard]:
    """The files that patterns name, sorted, each a shard with a name unique in the listing.

    Args:
        urls: absolute, as recipes resolve them.
        kind: what a file is called in errors.
        ending: a regular expression; what it matches at the end of a path is left out of the name.

    Raises:
        RequestError: a pattern matches nothing, a file is missing, or two files would have the same name.
    """
    named: dict[str, str] = {}
    for pattern in (urls,) if isinstance(urls, str) else urls:
        uris = storage.expand(pattern)
        if not uris:
            raise RequestError(f"no {kind} matches {pattern!r}: check the path (quote it so that the shell leaves it)")
        for uri in uris:
            name = _name(uri, pattern, ending)
            if named.setdefault(name, uri) != uri:
                raise RequestError(f"{named[name]} and {uri} would both be called {name!r}: name them by one pattern")
    try:
        # An object store takes a moment to answer for each.
        with ThreadPoolExecutor(_PARALLEL_SIZES) as pool:
            stamps = list(pool.map(storage.stamp, (uri for _, uri in sorted(named.items()))))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"no such {kind}: {error.filename or error}") from None
    return [
        Shard(index, name, uri, stamp[0], _version(stamp))
        for index, ((name, uri), stamp) in enumerate(zip(sorted(named.items()), stamps, strict=True))
    ]


def file_version(uri: str) -> str:
    """The version of a shard that is read from the file at `uri`."""
    return _version(storage.stamp(uri))


def _version(stamp: tuple[int, str]) -> str:
    return f"{stamp[0]:,} bytes of {stamp[1]}"


def _name(uri: str, pattern: str, ending: str) -> str:
    """The file's path below the folder that precedes the pattern's first wildcard, without its ending."""
    folder = storage.resolve(storage.folder_of(pattern) or ".")[1]
    return re.sub(f"{ending}$", "", storage.resolve(uri)[1].removeprefix(folder).lstrip("/"))


def sample_key(shard: Shard, name: object) -> str:
    """The key of the sample called `name` in its shard, printable as names need not be."""
    return printable(f"{shard.name}/{name}")


def row_name(row: int) -> str:
    """The name of a row that brings none of its own."""
    return f"{row:09d}"


def unique(items: Iterable[Sample | Reject]) -> Iterator[Sample | Reject]:
    """`items` of a shard, with every one whose key came before made a reject."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            yield Reject(item.key, "read", DUPLICATE_KEY, "the shard has this key more than once")
            continue
        seen.add(item.key)
        yield item


def called(name: str, columns: Collection[str]) -> str | None:
    """The one of `columns` that is called `name`: exactly so, or else but for capitals and white space around it."""
    if name in columns:
        return name
    return next((column for column in columns if column.strip().casefold() == name.strip().casefold()), None)


def value(record: dict[str, Any], column: str | None, usual: tuple[str, ...]) -> Any:
    """What a record says in a column, or else in the first of the usual ones that says anything.

    Args:
        column: "" for none at all.
    """
    names = usual if column is None else (column,) if column else ()
    found = (record[place] for name in names if (place := called(name, record)) is not None)
    return next((each for each in found if each not in (None, "", [])), None)


def captions(found: object) -> tuple[str, ...]:
    """The texts in `found`, a text or a list of them, without the empty ones.

    Raises:
        ValueError: one is no Unicode text, or they are too many (TooLargeError); then none is taken, so that a sample
            is in one place.
    """
    # An editor may have put a byte order mark before it.
    texts = [
        text.removeprefix("\ufeff").strip()
        for text in (found if isinstance(found, list) else [found])
        if isinstance(text, str)
    ]
    # Half a surrogate pair, which JSON allows, is no text, and cannot be encoded.
    check_captions(len(texts), sum(len(text.encode()) for text in texts))
    return tuple(text for text in texts if text)


def check_captions(count: int, size: int) -> None:
    """Raises TooLargeError where the captions of a sample are too many, or too long together, in bytes of UTF-8."""
    if count > MAX_CAPTIONS:
        raise TooLargeError(f"{count:,} captions are more than {MAX_CAPTIONS:,}")
    if size > MAX_TEXT_BYTES:
        raise TooLargeError(f"captions of {size:,} bytes together are more than {MAX_TEXT_BYTES:,}")


def read_image(uri: str) -> bytes:
    """The file at `uri`.

    Raises:
        NoPlainFileError: it is a device, a pipe or a socket, which may never end, or never begin.
        TooLargeError: no image is that large.
    """
    if storage.is_local(uri):
        mode = os.stat(storage.resolve(uri)[1]).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise NoPlainFileError(f"{uri} is no plain file but a device, a pipe or a socket")
    try:
        # Not its size, which would cost an object store a request more.
        data = storage.read_bytes(uri, 0, MAX_IMAGE_BYTES + 1)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # An object store has no range of an empty object.
        data = storage.read_bytes(uri)
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLargeError(f"{uri} has more than {MAX_IMAGE_BYTES:,} bytes")
    return data


def raise_unless_its_own(error: Exception) -> None:
    """Raises an error of reading a file that is not the file's own fault, but that of its storage.

    Storage may be reached again, with other credentials perhaps, so its faults end a run, and the next continues it.
    """
    if isinstance(error, OSError):
        absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        its_own = absent or error.errno in _PATH_ERRNOS
    else:
        # What a web server answers of a path, unless it asks who one is, or for patience.
        status = getattr(error, "status", 0)
        answered = isinstance(status, int) and 300 <= status < 500 and status not in (401, 403, 407, 408, 429)
        its_own = answered or isinstance(error, ValueError | storage.ImpossibleUriError)
    if not its_own:
        raise error


def class_label(found: str | bytes | int) -> int | None:
    """The class index that `found` says; None for -1, by which Hugging Face's data sets mark images without a label.

    Raises:
        ValueError: it is no integer, or one that the schema cannot hold.
    """
    label = int(found)
    if not -(2**31) <= label < 2**31:
        raise ValueError(f"label {label} does not fit int32")
    return None if label == -1 else label
