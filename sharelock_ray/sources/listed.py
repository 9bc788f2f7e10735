"""A source whose listing is computed once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sharelock_ray.sources.sample import Content, Reject, Sample, Shard, Source


@dataclass(frozen=True)
class Listed:
    """Wraps `source` and keeps its listing after the first use."""

    source: Source

    def __reduce__(self) -> tuple[type["Listed"], tuple[Source]]:
        # Workers receive their shards and need no listing.
        return Listed, (self.source,)

    @cached_property
    def _shards(self) -> list[Shard]:
        return self.source.shards()

    @property
    def provides(self) -> frozenset[Content]:
        return self.source.provides

    def shards(self) -> list[Shard]:
        """The listing as of the first call."""
        return self._shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """See `Source.read`."""
        return self.source.read(shard)

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """See `Source.keys_of`."""
        return self.source.keys_of(shard)

    def version(self, shard: Shard) -> str:
        """The current version, not the one at the time of the listing."""
        return self.source.version(shard)
