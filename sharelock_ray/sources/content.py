"""What a file that a user names really holds: text as editors write it, or none of what it is called."""

import re

from sharelock_ray import storage
from sharelock_ray.errors import RequestError

_START_BYTES = 512
_UNPACK = "decompress it"
# Of what comes in place of data, and of what bears another's name.
_KINDS = {
    rb"version https://git-lfs\.github\.com/": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)": "a web page, as servers send for an error: download it again",
    rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<error>": "the error of an object store: download it again",
    rb"\xff\xfe|\xfe\xff|(?:[^\0]\0){4}|(?:\0[^\0]){4}": "text in UTF-16 or UTF-32: save it as UTF-8",
    rb"\x1f\x8b": f"compressed by gzip: {_UNPACK}",
    rb"BZh[1-9]1AY&SY": f"compressed by bzip2: {_UNPACK}",
    rb"\xfd7zXZ\0": f"compressed by xz: {_UNPACK}",
    rb"\x28\xb5\x2f\xfd": f"compressed by Zstandard: {_UNPACK}",
    rb"\x04\x22\x4d\x18": f"compressed by LZ4: {_UNPACK}",
    rb"PK\x03\x04": "a ZIP archive: unpack it",
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    rb"Rar!\x1a\x07": "a RAR archive: unpack it",
}


def looks_like(content: bytes) -> str | None:
    """What a file is that is not what it is called, and what to do about it; None where nobody knows.

    Args:
        content: of the file, from its start; the first 512 bytes tell.
    """
    start = content[:_START_BYTES]
    if not start:
        return "empty: write or download it again"
    return next((kind for pattern, kind in _KINDS.items() if re.match(pattern, start)), None)


def start_of(uri: str) -> bytes:
    """As much of the object at `uri` as `looks_like` wants."""
    with storage.open_read(uri) as stream:
        return bytes(stream.read(_START_BYTES))


def with_kind(message: str, content: bytes) -> str:
    """`message`, which says that a file could not be read, with what the file looks like instead."""
    kind = looks_like(content)
    return f"{message}; the file is {kind}" if kind else message


def decoded(data: bytes, place: str) -> str:
    """The text of a file at `place`: UTF-8, without a byte order mark at its start.

    Raises:
        RequestError: it is in another encoding, or no text at all.
    """
    kind = looks_like(data) if data else None
    if kind:
        raise RequestError(f"{place} is no UTF-8 text but {kind}")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at, line = error.start, data.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{place} is no UTF-8 text: line {line:,} has the byte 0x{data[at]:02x} (byte {at:,} of the file): "
            "save it as UTF-8"
        ) from None


def read_lines(uri: str, what: str) -> list[str]:
    """The lines of a text file that a user wrote; they end in a line feed, before which a carriage return may be.

    Empty lines at the end are none. Other separators of lines that Unicode has are characters of a line.

    Args:
        what: they are, for errors ("class names").

    Raises:
        RequestError: there is no such file, or it is no UTF-8 text.
    """
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise RequestError(f"no {what} at {uri}: check the path") from None
    except PermissionError:
        raise RequestError(f"{uri} may not be read by this user") from None
    lines = [line.removesuffix("\r") for line in decoded(data, uri).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
