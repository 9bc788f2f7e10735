"""The types shared by all readers: shard, sample, reject, and the reader protocol."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sharelock_ray.errors import RequestError

Content = Literal["images", "captions", "labels"]
"""The kinds of content of a source."""
IMAGES: Content = "images"
CAPTIONS: Content = "captions"
LABELS: Content = "labels"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def escaped(text: str) -> str:
    """`text` with control characters and lone surrogates written as `\\x0a` and `\\udcff`, so that it is one line of
    valid Unicode."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@dataclass(frozen=True)
class Shard:
    """A unit of reading; each shard becomes one part of a feature set.

    Args:
        index: position in the listing, from 0.
        name: unique in the listing; the prefix of every key of the shard.
        version: changes with the shard's data.

    Raises:
        RequestError: the URI, which manifests contain, has control characters or is not valid Unicode.
    """

    index: int
    name: str
    uri: str
    bytes: int
    version: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if escaped(self.uri) != self.uri:
            raise RequestError(
                f"{escaped(self.uri)}: the name has control characters or is not Unicode: rename the file or folder"
            )


@dataclass(frozen=True)
class Sample:
    """One input.

    Args:
        image: encoded bytes (JPEG, PNG, …), not pixels.
        label: class index.
        members: names of the tar members of the sample, also unused ones, for diagnosis.
    """

    key: str
    image: bytes | None
    captions: tuple[str, ...] = ()
    label: int | None = None
    members: tuple[str, ...] = field(default=(), compare=False)


DUPLICATE_KEY = "DuplicateKey"
"""Error of an input with the key of an earlier input of its shard; only this reject may share its key with a row."""

MISSING = ("MissingImage", "MissingCaption")
"""Errors of a valid sample without the content that an encoder needs."""


@dataclass(frozen=True)
class Reject:
    """An input that could not be encoded, with the stage (read, decode, encode) and the error.

    The message is reduced to one printable line of at most 500 characters.
    """

    key: str
    stage: str
    error: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", escaped(" ".join(self.message.split()))[:500])

    @classmethod
    def of(cls, key: str, stage: str, error: Exception) -> "Reject":
        return cls(key, stage, type(error).__name__, str(error))


class Source(Protocol):
    """The interface of all readers."""

    @property
    def provides(self) -> frozenset[Content]:
        """Content that samples may have, by format and settings; encoders that need other content skip the source."""
        ...

    def shards(self) -> list[Shard]:
        """The listing, in a deterministic order."""
        ...

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """All inputs of a shard in a deterministic order; the keys of samples are unique."""
        ...

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys that `read` yields, without reading images and captions if the format allows it.

        They may differ if the shard is damaged, since only `read` detects all damage.
        """
        ...

    def version(self, shard: Shard) -> str:
        """The current value of `Shard.version`.

        Raises:
            FileNotFoundError: the shard was deleted.
        """
        ...


def change(source: Source, shard: Shard) -> str | None:
    """An error message if a shard was changed or deleted after the listing; None otherwise.

    Without this check, samples of a replaced shard could be lost silently.
    """
    try:
        now = source.version(shard)
    except (FileNotFoundError, NotADirectoryError):
        now = "deleted"
    if now == shard.version:
        return None
    return (
        f"{shard.uri} was changed after the run had listed it (before: {shard.version}, now: {now}): "
        f"do not change inputs while they are read, and run the same command again"
    )
