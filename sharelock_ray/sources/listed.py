"""A source that is listed once, however often a command asks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sharelock_ray.sources.sample import Content, Reject, Sample, Shard, Source


@dataclass(frozen=True)
class Listed:
    """`source`, with its listing kept from the first use on."""

    source: Source

    def __reduce__(self) -> tuple[type["Listed"], tuple[Source]]:
        # Workers read shards that they are given, and need no listing.
        return Listed, (self.source,)

    @cached_property
    def _shards(self) -> list[Shard]:
        return self.source.shards()

    @property
    def provides(self) -> frozenset[Content]:
        return self.source.provides

    def shards(self) -> list[Shard]:
        """The listing of the first call."""
        return self._shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """As the source."""
        return self.source.read(shard)

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """As the source."""
        return self.source.keys_of(shard)

    def version(self, shard: Shard) -> str:
        """As the source: what it is now, not when it was listed."""
        return self.source.version(shard)
