"""WebDataset tars, as img2dataset and the webdataset library write them.

A sample is the run of members that share a name up to its first dot: `000000123.jpg`, `000000123.txt`, …
"""

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import Reject, Sample, Shard

_IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
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
        patterns = map(storage.absolute, (self.urls,) if isinstance(self.urls, str) else self.urls)
        named: dict[str, str] = {}
        for pattern in patterns:
            uris = storage.expand(pattern)
            if not uris:
                raise RequestError(f"no tar matches {pattern!r}: check the path (quote it so that the shell leaves it)")
            for uri in uris:
                name = _name(uri, pattern)
                if named.setdefault(name, uri) != uri:
                    raise RequestError(
                        f"{named[name]} and {uri} would both be called {name!r}: name them by one pattern"
                    )
        try:
            return [
                Shard(index, name, uri, storage.size(uri)) for index, (name, uri) in enumerate(sorted(named.items()))
            ]
        except FileNotFoundError as error:
            raise RequestError(f"no such tar: {error.filename or error}") from None

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The samples of one tar in the order of their first members; what cannot be read comes as rejects.

        A tar that breaks off gives what came before, then one reject that names the shard.
        """
        seen: set[str] = set()
        try:
            with (
                storage.open_read(shard.uri) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar,
            ):
                for stem, members in _grouped(tar):
                    key = f"{shard.name}/{stem}".encode("utf-8", "backslashreplace").decode()
                    if key in seen:
                        yield Reject(key, "read", "DuplicateKey", "the shard has this key more than once")
                        continue
                    seen.add(key)
                    yield _sample(key, members)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            yield Reject.of(f"{shard.name}/", "read", error)


def _name(uri: str, pattern: str) -> str:
    """The tar's path below the folder that precedes the pattern's first wildcard, without its ending."""
    fixed = re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]
    folder = storage.resolve(fixed or ".")[1]
    return re.sub(r"\.tar(\.gz)?$", "", storage.resolve(uri)[1].removeprefix(folder).lstrip("/"))


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
            limit = _MAX_IMAGE_BYTES if extension.lower() in _IMAGE_EXTENSIONS else _MAX_TEXT_BYTES
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
        image = next((members[extension] for extension in members if extension in _IMAGE_EXTENSIONS), None)
        label = members.get("cls")
        return Sample(key, image, tuple(_captions(members)), _label(label) if label is not None else None)
    except (ValueError, RecursionError) as error:
        return Reject.of(key, "read", error)


def _label(content: bytes) -> int:
    label = int(content)
    if not -(2**31) <= label < 2**31:
        raise ValueError(f"label {label} does not fit int32")
    return label


def _captions(members: dict[str, bytes]) -> Sequence[str]:
    if "txt" in members:
        found: object = members["txt"].decode("utf-8")
    elif "json" in members:
        record = json.loads(members["json"])
        found = record.get("caption") if isinstance(record, dict) else None
    else:
        found = None
    texts = [text.strip() for text in (found if isinstance(found, list) else [found]) if isinstance(text, str)]
    for text in texts:
        text.encode()  # Half a surrogate pair, which JSON allows, is no text.
    return [text for text in texts if text]
