"""Offsets of the members of a tar, read from its headers; every intact member of a damaged tar is found.

The standard library's `tarfile` is not enough, even with `ignore_zeros`, which skips damaged headers. It
- loses all members after one that claims more bytes than the tar has,
- follows chains of extended headers by recursion,
- accepts negative sizes and broken records,
- reads names of any length into memory,
- does not report damaged stretches or a missing end mark.
"""

import bz2
import lzma
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sharelock_ray.storage import writing

_BLOCK = tarfile.BLOCKSIZE
_MAGIC_OFFSET = 257
# Types of headers that describe the next member: its long name, or records of the pax format.
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_RECORD = re.compile(rb"([0-9]{1,9}) ([^=]+)=")
_MAX_EXTENSION_BYTES = 1 << 20
_FIRST_WINDOW_BYTES, _MAX_WINDOW_BYTES = 8 * _BLOCK, 1 << 20

_GZIP_BITS = 16 + zlib.MAX_WBITS
_COMPRESSIONS: dict[bytes, Callable[[], Any]] = {
    rb"\x1f\x8b\x08": lambda: zlib.decompressobj(_GZIP_BITS),
    rb"BZh[1-9]1AY&SY": bz2.BZ2Decompressor,
    rb"\xfd7zXZ\0": lzma.LZMADecompressor,
}
# A decompressor's call that finds damage returns nothing, so a small buffer loses little.
_BUFFER_BYTES = 64 << 10
# Images hardly compress, and texts compress to about a tenth; a gzip bomb compresses to a thousandth.
MAX_EXPANSION = 50
MIN_EXPANDED_BYTES = 64 << 20


class DecompressionBombError(ValueError):
    """Data exceeds the limit of decompression."""


class CorruptCompressionError(ValueError):
    """The compressed data of a tar is damaged."""


class _DamageError(Exception):
    """There is no valid member at an offset."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar.

    Args:
        name: as stored, so it may be absolute or contain `..`.
        kind: `other` is a link, a device, ….
        offset, size: place of a file's content in the tar, in bytes.
    """

    name: str
    kind: Literal["file", "folder", "other"]
    offset: int
    size: int


@dataclass(frozen=True)
class Damage:
    """A damaged stretch of the tar, from byte `start` to before `end`."""

    start: int
    end: int
    problem: str


@dataclass(frozen=True)
class Fault:
    """Damage of a compressed tar; only the first `sound` decompressed bytes can be trusted."""

    error: Exception
    sound: int


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Fault | None]]:
    """A seekable uncompressed tar, and the damage found while decompressing it.

    A tar compressed by gzip, bzip2 or xz is decompressed to a temporary file of up to 50 times its size, or 64 MiB if
    that is more. So the checksums at the ends of its streams are verified before members are read. No byte can be
    trusted of a stream with a wrong checksum, since the place of the damage is unknown, or without one, since a changed
    byte can make a stream end early.
    """
    with path.open("rb", buffering=0) as stream:
        start = stream.read(16)
        compression = next((c for magic, c in _COMPRESSIONS.items() if re.match(magic, start)), None)
        if compression is None:
            yield stream, None
            return
    with tempfile.TemporaryFile(prefix="sharelock-", buffering=0) as plain:
        with writing(tempfile.gettempdir()):
            fault = _decompress(compression, path, plain)
        yield plain, fault


def _decompress(compression: Callable[[], Any], path: Path, plain: BinaryIO) -> Fault | None:
    limit = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * path.stat().st_size)
    written = checked = 0
    with path.open("rb") as stream:
        try:
            rest = b""
            while rest or (rest := stream.read(_BUFFER_BYTES)):
                # Several streams may follow each other, separated by zeros.
                rest = rest.lstrip(b"\0")
                if not rest:
                    continue
                decoder = compression()
                for block in _blocks(decoder, rest, stream):
                    if written + len(block) > limit:
                        raise DecompressionBombError(f"the tar has more than {limit:,} bytes after decompression")
                    written += plain.write(block)
                checked, rest = written, decoder.unused_data
        except (EOFError, DecompressionBombError) as error:
            return Fault(error, checked)
        except (zlib.error, lzma.LZMAError, OSError) as error:
            # Damage is an OSError without errno; errors of the disk have one.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return Fault(CorruptCompressionError(f"damaged from byte {checked:,} on: {error}"), checked)
    return None


def _blocks(decoder: Any, rest: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Decompresses `rest` followed by `stream`.

    Raises:
        EOFError: it breaks off.
    """
    while not decoder.eof:
        # Those of bzip2 and xz keep input that had no room yet; that of zlib gives it back.
        wanted = not rest and getattr(decoder, "needs_input", True)
        if wanted:
            rest = stream.read(_BUFFER_BYTES)
        block = decoder.decompress(rest, _BUFFER_BYTES)
        if wanted and not rest and not block and not decoder.eof:
            raise EOFError("the compressed tar ends before its end mark")
        rest = getattr(decoder, "unconsumed_tail", b"")
        yield block


def members(stream: BinaryIO) -> Iterator[Member | Damage]:
    """Yields the members of a tar in order, and the damaged stretches between them.

    Reads headers only, each once. After damage, reading continues at the next intact header. A header that claims more
    bytes than the tar has left is damaged. A tar without an end mark ends in a stretch, which may be empty.
    """
    size = stream.seek(0, 2)
    # `begin` is the offset of a member's first header; `said` collects the records of its extended headers.
    begin = offset = 0
    said: dict[str, str] = {}
    while offset < size:
        try:
            header = _header(stream, offset)
            content = offset + _BLOCK
            if header.type in _EXTENSIONS:
                said |= _extension(stream, header, content)
                offset = content + _padded(header.size)
                continue
            member = _member(header, said, content, size)
        except (_DamageError, tarfile.HeaderError) as error:
            end = _next_header(stream, offset + _BLOCK, size)
            if begin == offset and end == size and _is_end(stream, offset):
                return
            yield Damage(begin, end, str(error))
            offset = end
            if end == size:
                return
        else:
            yield member
            offset = content + _padded(member.size)
        begin, said = offset, {}
    yield Damage(begin, size, "the end mark is missing")


def _extension(stream: BinaryIO, header: tarfile.TarInfo, content: int) -> dict[str, str]:
    """The records of an extended header about the next member, in pax format."""
    if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
        raise _DamageError(f"an extended header of {header.size:,} bytes")
    found = _read(stream, content, header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": found.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    return _pax_records(found) if header.type in _PAX else {}


def _member(header: tarfile.TarInfo, said: dict[str, str], content: int, size: int) -> Member:
    name = said.get("GNU.sparse.name", said.get("path", header.name))
    if header.isdir():
        return Member(name, "folder", content, 0)
    if header.type in tarfile.SUPPORTED_TYPES and not header.isreg():
        return Member(name, "other", content, 0)
    try:
        length = int(said.get("size", header.size))
    except ValueError:
        raise _DamageError("a size that is not a number") from None
    if not 0 <= length <= size - content:
        raise _DamageError(f"{name[:200]!r} claims {length:,} bytes, and the tar has {size - content:,} left")
    sparse = header.type == tarfile.GNUTYPE_SPARSE or any(record.startswith("GNU.sparse.") for record in said)
    plain = header.type in tarfile.REGULAR_TYPES and not sparse
    return Member(name, "file" if plain else "other", content, length)


def _header(stream: BinaryIO, offset: int) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(_read(stream, offset, _BLOCK), "utf-8", "surrogateescape")


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pax_records(content: bytes) -> dict[str, str]:
    """The `length keyword=value` lines of an extended header (POSIX.1-2001, pax interchange format)."""
    records = {}
    place = 0
    while place < len(content) and content[place]:
        match = _PAX_RECORD.match(content, place)
        end = place + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content):
            raise _DamageError("an invalid extended header")
        records[match[2].decode("utf-8", "replace")] = content[match.end() : end - 1].decode("utf-8", "surrogateescape")
        place = end
    return records


def _next_header(stream: BinaryIO, start: int, size: int) -> int:
    """Offset of the first intact header from `start` on, or `size` if there is none.

    Only block boundaries are tried, and windows grow from a small size, so the search is fast for any content.
    """
    window = _FIRST_WINDOW_BYTES
    while start < size:
        content = _read(stream, start, window)
        for block, byte in enumerate(content[_MAGIC_OFFSET::_BLOCK]):
            at = block * _BLOCK
            if byte == ord("u") and content.startswith(b"ustar", at + _MAGIC_OFFSET) and _is_header(content, at):
                return start + at
        start += window
        window = min(2 * window, _MAX_WINDOW_BYTES)
    return size


def _is_header(content: bytes, at: int) -> bool:
    try:
        tarfile.TarInfo.frombuf(content[at : at + _BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_end(stream: BinaryIO, start: int) -> bool:
    """Whether only zeros follow from `start` on, at least one block of them."""
    stream.seek(start)
    length = 0
    while content := stream.read(_MAX_WINDOW_BYTES):
        if content.count(0) != len(content):
            return False
        length += len(content)
    return length >= _BLOCK
