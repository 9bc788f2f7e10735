"""The one canonical row that every reader yields, and what becomes of an input that cannot be one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sharelock_ray.errors import RequestError

Content = Literal["images", "captions", "labels"]
"""What a source may hold."""
IMAGES: Content = "images"
CAPTIONS: Content = "captions"
LABELS: Content = "labels"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def printable(text: str) -> str:
    """`text` without control characters or halves of surrogate pairs: they are written as `\\x0a` or `\\udcff`."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@dataclass(frozen=True)
class Shard:
    """A unit of reading, which also becomes one part of the feature sets made from it.

    `index` numbers the shards of a listing from 0; `name` is unique in it and starts every key of the shard. `version`
    changes when what the shard is read from does.

    Raises:
        RequestError: the URI, which a manifest shows, is not printable.
    """

    index: int
    name: str
    uri: str
    bytes: int
    version: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if printable(self.uri) != self.uri:
            raise RequestError(
                f"{printable(self.uri)}: this name is no line of Unicode text: rename the file or folder"
            )


@dataclass(frozen=True)
class Sample:
    """One input. `image` holds encoded bytes (JPEG, PNG, …), not pixels; `label` is a class index.

    `members` are the names of what it was made of, where that may be more than is used; they only help to find a fault.
    """

    key: str
    image: bytes | None
    captions: tuple[str, ...] = ()
    label: int | None = None
    members: tuple[str, ...] = field(default=(), compare=False)


DUPLICATE_KEY = "DuplicateKey"
"""The error of an input whose key another one of its shard has: the only reject whose key may be a row's too."""

MISSING = ("MissingImage", "MissingCaption")
"""The errors of a sample that has nothing for an encoder, though nothing is wrong with it."""


@dataclass(frozen=True)
class Reject:
    """An input that could not be encoded: which, at which stage (read, decode, encode), and why.

    Whatever the message quotes of the input, it is one printable line of at most 500 characters.
    """

    key: str
    stage: str
    error: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(" ".join(self.message.split()))[:500])

    @classmethod
    def of(cls, key: str, stage: str, error: Exception) -> "Reject":
        return cls(key, stage, type(error).__name__, str(error))


class Source(Protocol):
    """What every reader of inputs offers."""

    @property
    def provides(self) -> frozenset[Content]:
        """What its samples may hold, by its format and settings: only encoders that it can feed run over it."""
        ...

    def shards(self) -> list[Shard]:
        """The listing, in a fixed order."""
        ...

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """Everything in one shard, in a fixed order, each key once among the samples."""
        ...

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys of what `read` gives, read without images and captions where the format allows it.

        Where contents are damaged `read` may give others, as only it sees that.
        """
        ...

    def version(self, shard: Shard) -> str:
        """What `Shard.version` would be if the shard were listed now.

        Raises:
            FileNotFoundError: it is gone.
        """
        ...


def change(source: Source, shard: Shard) -> str | None:
    """What is wrong with a shard that is another one now than when it was listed.

    Whoever replaces one under a run's hands could take samples from it in silence.
    """
    try:
        now = source.version(shard)
    except (FileNotFoundError, NotADirectoryError):
        now = "gone"
    if now == shard.version:
        return None
    return (
        f"{shard.uri} was changed after the run had listed it (it was {shard.version}, and is {now}): "
        f"leave inputs alone while they are read, and run the same command again"
    )
