"""Detection of files whose content does not match their name, and decoding of text and YAML files."""

import re
from typing import Any

import yaml

from sharelock_ray import storage
from sharelock_ray.errors import RequestError

_START_BYTES = 512
_UNPACK = "decompress it"
# Patterns at the start of a file: placeholders and error pages instead of data, and other formats.
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
    """The actual kind of a mislabelled file and what to do about it; None if unknown.

    Args:
        content: start of the file; at most 512 bytes are used.
    """
    start = content[:_START_BYTES]
    if not start:
        return "empty: write or download it again"
    return next((kind for pattern, kind in _KINDS.items() if re.match(pattern, start)), None)


def start_of(uri: str) -> bytes:
    """The bytes of the object at `uri` that `looks_like` needs."""
    with storage.open_read(uri) as stream:
        return bytes(stream.read(_START_BYTES))


def with_kind(message: str, content: bytes) -> str:
    """`message` about an unreadable file, extended by the file's actual kind if it is known."""
    kind = looks_like(content)
    return f"{message}; the file is {kind}" if kind else message


def decoded(data: bytes, place: str) -> str:
    """Decodes UTF-8 and removes a byte order mark at the start.

    Args:
        place: path of the file, for errors.

    Raises:
        RequestError: the data is not UTF-8 text.
    """
    kind = looks_like(data) if data else None
    if kind:
        raise RequestError(f"{place} is not UTF-8 text but {kind}")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at, line = error.start, data.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{place} is not UTF-8 text: line {line:,} has the byte 0x{data[at]:02x} (byte {at:,} of the file): "
            "save it as UTF-8"
        ) from None


def read_lines(uri: str, what: str) -> list[str]:
    """The lines of a user's text file, separated by LF or CRLF, without the empty lines at the end.

    Unicode's other line separators are ordinary characters.

    Args:
        what: name of the content, for errors ("class names").

    Raises:
        RequestError: the file is missing, may not be read, or is not UTF-8 text.
    """
    with storage.reading(uri, what):
        data = storage.read_bytes(uri)
    lines = [line.removesuffix("\r") for line in decoded(data, uri).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_yaml(uri: str, what: str) -> dict[str, Any]:
    """The fields of a user's YAML file.

    Args:
        what: name of the content, for errors ("recipe").

    Raises:
        RequestError: the file is missing, may not be read, is not YAML, or holds no fields.
    """
    with storage.reading(uri, what):
        data = storage.read_bytes(uri)
    try:
        content = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise RequestError(f"{uri} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{uri} is not a {what}: it must hold fields, such as `name:`")
    return content
