"""WebDataset tars, as img2dataset and the webdataset library write them.

A sample is the members that share a name up to its first dot, wherever they lie in the tar: `000000123.jpg`,
`000000123.txt`, …
"""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO, Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.sources.listing import (
    IMAGE_EXTENSIONS,
    MAX_IMAGE_BYTES,
    TooLargeError,
    captions,
    class_label,
    file_shards,
    sample_key,
    unique,
)
from sharelock_ray.sources.sample import Reject, Sample, Shard
from sharelock_ray.sources.tar import Damage, Member, members, opened

# A caption or label beyond this is no caption; reading it whole would let one member fill the memory.
_MAX_TEXT_BYTES = 1 << 20
# `txt`, or one of several captions: `0.txt`, `1.txt`, … or `caption0.txt`, …
_TEXT = re.compile(r"(?:(?:caption)?([0-9]{1,6})\.)?txt")

_Members = dict[str, Member]


class WebDatasetSource(Config):
    """Tars named by one or more patterns (braces and wildcards; local path, `s3://…` or any fsspec URI)."""

    format: Literal["webdataset"] = "webdataset"
    urls: tuple[str, ...] | str

    def shards(self) -> list[Shard]:
        """The tars, sorted, each with a name unique in the listing.

        Raises:
            RequestError: a pattern matches nothing, a file is missing, or two tars would have the same name.
        """
        return file_shards(self.urls, "tar", r"(\.tar(\.gz|\.bz2|\.xz)?|\.tgz)")

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one tar in the order of their first members; what cannot be read comes as rejects.

        A damaged tar gives the samples that are whole, then one reject for each damaged stretch.
        """
        with storage.local_copy(shard.uri) as path, opened(path) as (stream, broken):
            samples, damages = _index(stream)
            yield from unique(_sample(shard, stream, stem, found) for stem, found in samples)
            if broken is not None:
                # The tar breaks off because of it.
                damages = [damage for damage in damages if damage.end < stream.seek(0, 2)]
            for damage in damages:
                message = f"bytes {damage.start:,} to {damage.end:,}: {damage.problem}"
                yield Reject(sample_key(shard, f"@{damage.start}"), "read", "DamagedTar", message)
            if broken is not None:
                yield Reject.of(sample_key(shard, ""), "read", broken)


def _index(stream: BinaryIO) -> tuple[list[tuple[str, _Members]], list[Damage]]:
    """The stem and members, by lower-case extension, of each sample, and the damaged stretches.

    An extension that comes again begins another sample of the same stem, to which later members belong: so no caption
    can come to the image of another sample.
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


def _sample(shard: Shard, stream: BinaryIO, stem: str, found: _Members) -> Sample | Reject:
    key = sample_key(shard, stem)
    if ".." in stem.split("/"):
        return Reject(key, "read", "UnsafeName", "the name leads out of the folder")
    special = next((member.name for member in found.values() if member.kind == "other"), None)
    if special is not None:
        return Reject(key, "read", "UnsupportedMember", f"{special[:200]!r} is no plain file but a link, a device, …")
    try:
        image = next((extension for extension in found if extension in IMAGE_EXTENSIONS), None)
        label = _content(stream, found["cls"], _MAX_TEXT_BYTES) if "cls" in found else None
        return Sample(
            key,
            None if image is None else _content(stream, found[image], MAX_IMAGE_BYTES),
            captions(_texts(stream, found)),
            None if label is None else class_label(label),
        )
    except (ValueError, RecursionError) as error:
        return Reject.of(key, "read", error)


def _texts(stream: BinaryIO, found: _Members) -> object:
    numbers = {name: int(match[1] or -1) for name in found if (match := _TEXT.fullmatch(name))}
    if numbers:
        names = sorted(numbers, key=numbers.__getitem__)
        return [_content(stream, found[name], _MAX_TEXT_BYTES).decode("utf-8-sig") for name in names]
    record = json.loads(_content(stream, found["json"], _MAX_TEXT_BYTES)) if "json" in found else None
    return (record.get("caption") or record.get("captions")) if isinstance(record, dict) else None


def _content(stream: BinaryIO, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise TooLargeError(f"{member.name[:200]!r} has {member.size:,} bytes, more than {limit:,}")
    stream.seek(member.offset)
    return stream.read(member.size)
