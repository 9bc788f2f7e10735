"""The one canonical row that every reader yields, and what becomes of an input that cannot be one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Shard:
    """A unit of reading, which also becomes one part of the feature sets made from it.

    `index` numbers the shards of a listing from 0; `name` is unique in it and starts every key of the shard.
    """

    index: int
    name: str
    uri: str
    bytes: int


@dataclass(frozen=True)
class Sample:
    """One input. `image` holds encoded bytes (JPEG, PNG, …), not pixels; `label` is a class index."""

    key: str
    image: bytes | None
    captions: tuple[str, ...] = ()
    label: int | None = None


DUPLICATE_KEY = "DuplicateKey"
"""The error of an input whose key another one of its shard has: the only reject whose key may be a row's too."""


@dataclass(frozen=True)
class Reject:
    """An input that could not be encoded: which, at which stage (read, decode, encode), and why."""

    key: str
    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, key: str, stage: str, error: Exception) -> "Reject":
        return cls(key, stage, type(error).__name__, " ".join(str(error).split())[:500])


class Source(Protocol):
    """What every reader of inputs offers."""

    def shards(self) -> list[Shard]:
        """The listing, in a fixed order."""
        ...

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """Everything in one shard, in a fixed order, each key once among the samples."""
        ...
