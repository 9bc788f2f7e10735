"""A source restricted to some keys."""

from collections.abc import Iterator
from dataclasses import dataclass

from sharelock_ray.sources.sample import Content, Reject, Sample, Shard, Source


@dataclass(frozen=True)
class Subset:
    """The inputs of `source` with a key in `keys`; shards keep their indices, and those without any are omitted."""

    source: Source
    keys: frozenset[str]

    @property
    def provides(self) -> frozenset[Content]:
        return self.source.provides

    def shards(self) -> list[Shard]:
        """The shards that hold at least one of the keys."""
        return [shard for shard in self.source.shards() if any(key.startswith(f"{shard.name}/") for key in self.keys)]

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The selected keys of one shard."""
        return (key for key in self.source.keys_of(shard) if key in self.keys)

    def version(self, shard: Shard) -> str:
        """See `Source.version`."""
        return self.source.version(shard)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The selected inputs of one shard."""
        return (item for item in self.source.read(shard) if item.key in self.keys)
