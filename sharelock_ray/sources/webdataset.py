"""WebDataset tars, as written by img2dataset and the webdataset library.

A sample consists of the members with the same name up to its first dot, anywhere in the tar: `000000123.jpg`,
`000000123.txt`, … The rest of the name is the member's extension, as in the webdataset library.
"""

import json
import re
from collections.abc import Collection, Iterator
from tarfile import BLOCKSIZE
from typing import BinaryIO, Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.sources.content import with_kind
from sharelock_ray.sources.listing import (
    BOM,
    IMAGE_EXTENSIONS,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    TooLargeError,
    captions,
    class_label,
    file_shards,
    file_version,
    sample_key,
    unique,
    value,
)
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Content, Reject, Sample, Shard
from sharelock_ray.sources.tar import Damage, Fault, Member, members, opened

_CAPTIONS = ("caption", "captions", "text")
# One caption: `txt` or `caption.txt`; or several: `0.txt`, `1.txt`, … or `caption0.txt`, …
_TEXT = re.compile(r"(?:(?:captions?|text)?([0-9]{1,6})?\.)?(?:txt|text)")
# The numbers may belong to a name with dots.
_BEHIND_NUMBERS = re.compile(r"(?:[0-9]+\.)*([^.]+)")

_Members = dict[str, Member]


class WebDatasetSource(Config):
    """Tars given by one or more patterns (braces and wildcards; local path, `s3://…` or any fsspec URI)."""

    format: Literal["webdataset"] = "webdataset"
    urls: tuple[storage.Uri, ...] | storage.Uri
    caption_per_line: bool = False
    """Whether each line of a text member is a caption, as in the retrieval tars of CLIP-Benchmark."""

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({IMAGES, CAPTIONS, LABELS})

    def shards(self) -> list[Shard]:
        """The tars, sorted by name; names are unique.

        Raises:
            RequestError: a pattern matches nothing, a file is missing, or two tars would have the same name.
        """
        return file_shards(self.urls, "tar", r"(\.tar(\.gz|\.bz2|\.xz)?|\.tgz)")

    def version(self, shard: Shard) -> str:
        """Size, and ETag or modification time, of the file."""
        return file_version(shard.uri)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one tar in the order of their first members; unreadable ones are rejects.

        A damaged tar yields its intact samples, then one reject per damaged stretch. In a compressed tar, samples
        without a valid checksum are rejects.
        """
        with storage.local_copy(shard.uri) as path, opened(path) as (stream, fault):
            samples, damages = _index(stream)
            per_line = self.caption_per_line
            yield from unique(_sample(shard, stream, stem, found, fault, per_line) for stem, found in samples)
            yield from _damaged(shard, stream, damages, fault)

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys according to the headers of the tar."""
        with storage.local_copy(shard.uri) as path, opened(path) as (stream, fault):
            samples, damages = _index(stream)
            yield from (sample_key(shard, stem) for stem, _ in samples)
            yield from (reject.key for reject in _damaged(shard, stream, damages, fault))


def _damaged(shard: Shard, stream: BinaryIO, damages: list[Damage], fault: Fault | None) -> Iterator[Reject]:
    """One reject per damaged stretch, and one for damage of the compression."""
    if fault is not None:
        # The last stretch is a consequence of the fault.
        damages = [damage for damage in damages if damage.end < stream.seek(0, 2)]
    for damage in damages:
        message = f"bytes {damage.start:,} to {damage.end:,}: {damage.problem}"
        if damage.start == 0:
            stream.seek(0)
            message = with_kind(message, stream.read(BLOCKSIZE))
        yield Reject(sample_key(shard, f"@{damage.start}"), "read", "DamagedTar", message)
    if fault is not None:
        yield Reject.of(sample_key(shard, ""), "read", fault.error)


def _index(stream: BinaryIO) -> tuple[list[tuple[str, _Members]], list[Damage]]:
    """The stem of each sample with its members by lower-case extension, and the damaged stretches.

    A repeated extension starts a new sample of the same stem, which gets all later members. So a caption is never
    combined with the image of another sample.
    """
    samples: list[tuple[str, _Members]] = []
    damages: list[Damage] = []
    latest: dict[str, _Members] = {}
    for member in members(stream):
        if isinstance(member, Damage):
            damages.append(member)
            continue
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.kind == "folder" or any(part.startswith(".") and part != ".." for part in parts):
            continue
        base, _, extension = (parts.pop() if parts else "").partition(".")
        stem, extension = "/".join([*parts, base]), extension.lower()
        found = latest.get(stem)
        if found is None or extension in found:
            latest[stem] = found = {}
            samples.append((stem, found))
        found[extension] = member
    return samples, damages


def _sample(
    shard: Shard, stream: BinaryIO, stem: str, found: _Members, fault: Fault | None, per_line: bool
) -> Sample | Reject:
    key = sample_key(shard, stem)
    if fault is not None and any(member.offset + member.size > fault.sound for member in found.values()):
        return Reject.of(key, "read", fault.error)
    if ".." in stem.split("/"):
        return Reject(key, "read", "UnsafeName", "the name contains '..'")
    special = next((member.name for member in found.values() if member.kind == "other"), None)
    if special is not None:
        return Reject(key, "read", "UnsupportedMember", f"{special[:200]!r} is a link, a device or a sparse file")
    images = _images(found)
    if len(images) > 1:
        names = " and ".join(repr(member.name[:200]) for member in images)
        return Reject(
            key, "read", "SeveralImages", f"{names} belong to one sample, since its name ends at the first dot"
        )
    try:
        label = next((_text(stream, member).removeprefix(BOM) for member in _behind_numbers(found, {"cls"})), None)
        return Sample(
            key,
            _content(stream, images[0], MAX_IMAGE_BYTES) if images else None,
            captions(_texts(stream, found, per_line)) or captions(_described(stream, found)),
            None if label is None else class_label(label),
            tuple(member.name for member in found.values()),
        )
    except (ValueError, RecursionError) as error:
        return Reject.of(key, "read", error)


def _images(found: _Members) -> list[Member]:
    """The image members. `image.jpg` counts only if there is no `jpg`, since `seg.png` may be a mask."""
    return _behind_numbers(found, IMAGE_EXTENSIONS) or [
        member for extension, member in found.items() if extension.rpartition(".")[2] in IMAGE_EXTENSIONS
    ]


def _behind_numbers(found: _Members, extensions: Collection[str]) -> list[Member]:
    """The members with one of `extensions`, preceded by nothing but numbers."""
    return [
        member
        for extension, member in found.items()
        if (match := _BEHIND_NUMBERS.fullmatch(extension)) and match[1] in extensions
    ]


def _texts(stream: BinaryIO, found: _Members, per_line: bool) -> list[object]:
    numbers = {name: int(match[1] or -1) for name in found if (match := _TEXT.fullmatch(name))}
    texts = [_text(stream, found[name]).decode() for name in sorted(numbers, key=numbers.__getitem__)]
    return [line for text in texts for line in (text.splitlines() if per_line else [text])]


def _described(stream: BinaryIO, found: _Members) -> object:
    """The captions in a JSON member, which is a list of captions or an object with them."""
    record = next((json.loads(_text(stream, member)) for member in _behind_numbers(found, {"json"})), None)
    if isinstance(record, dict):
        return value(record, None, _CAPTIONS)
    return record if isinstance(record, list) else None


def _text(stream: BinaryIO, member: Member) -> bytes:
    return _content(stream, member, MAX_TEXT_BYTES)


def _content(stream: BinaryIO, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise TooLargeError(f"{member.name[:200]!r} has {member.size:,} bytes, more than {limit:,}")
    stream.seek(member.offset)
    return stream.read(member.size)
