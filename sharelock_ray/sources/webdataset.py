"""WebDataset tars, as img2dataset and the webdataset library write them.

A sample is the run of members that share a name up to its first dot: `000000123.jpg`, `000000123.txt`, …
"""

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.sources.listing import IMAGE_EXTENSIONS, captions, class_label, file_shards, sample_key, unique
from sharelock_ray.sources.sample import Reject, Sample, Shard

# A caption or label beyond this is no caption; reading it whole would let one member fill the memory.
_MAX_TEXT_BYTES = 1 << 20
_MAX_IMAGE_BYTES = 256 << 20


class WebDatasetSource(Config):
    """Tars named by one or more patterns (braces and wildcards; local path, `s3://…` or any fsspec URI)."""

    format: Literal["webdataset"] = "webdataset"
    urls: tuple[str, ...] | str

    def shards(self) -> list[Shard]:
        """The tars, sorted, each with a name unique in the listing.

        Raises:
            RequestError: a pattern matches nothing, a file is missing, or two tars would have the same name.
        """
        return file_shards(self.urls, "tar", r"\.tar(\.gz)?")

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one tar in the order of their first members; what cannot be read comes as rejects.

        A tar that breaks off gives what came before, then one reject that names the shard.
        """
        try:
            with (
                storage.open_read(shard.uri) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar,
            ):
                yield from unique(_sample(sample_key(shard, stem), members) for stem, members in _grouped(tar))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            yield Reject.of(f"{shard.name}/", "read", error)


class BrokenTarError(tarfile.ReadError):
    """A header is damaged or missing."""


class _Member(tarfile.TarInfo):
    """A member whose header must be whole: tarfile itself takes a damaged or missing one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise BrokenTarError(f"the tar breaks off or is damaged at byte {tar.offset}: {error}") from None


def _grouped(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members with the same stem, as {lower-case extension: content}."""
    stem: str | None = None
    members: dict[str, bytes] = {}
    try:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if name.startswith(".") or "/." in f"/{folder}":
                continue
            base, _, extension = name.partition(".")
            this = f"{folder}/{base}" if folder else base
            if stem is not None and this != stem:
                yield stem, members
                members = {}
            stem = this
            limit = _MAX_IMAGE_BYTES if extension.lower() in IMAGE_EXTENSIONS else _MAX_TEXT_BYTES
            if member.size <= limit:
                stream = tar.extractfile(member)
                members[extension.lower()] = stream.read() if stream else b""
    except BrokenTarError:
        if stem is not None:
            yield stem, members
        raise
    if stem is not None:
        yield stem, members


def _sample(key: str, members: dict[str, bytes]) -> Sample | Reject:
    try:
        image = next((members[extension] for extension in members if extension in IMAGE_EXTENSIONS), None)
        label = members.get("cls")
        return Sample(key, image, captions(_texts(members)), class_label(label) if label is not None else None)
    except (ValueError, RecursionError) as error:
        return Reject.of(key, "read", error)


def _texts(members: dict[str, bytes]) -> object:
    if "txt" in members:
        return members["txt"].decode("utf-8")
    record = json.loads(members["json"]) if "json" in members else None
    return record.get("caption") if isinstance(record, dict) else None
