"""A few inputs of a source are read as the source itself reads them."""

from pathlib import Path

import support
from sharelock_ray.sources.subset import Subset
from sharelock_ray.sources.webdataset import WebDatasetSource


def test_gives_the_chosen_inputs_and_the_shards_that_they_are_of(tmp_path: Path) -> None:
    source = WebDatasetSource(urls=support.write_pairs(tmp_path, shards=3, samples=4))
    subset = Subset(source, frozenset({"00002/0001", "00000/0003", "00000/0000"}))
    assert [(shard.index, shard.name) for shard in subset.shards()] == [(0, "00000"), (2, "00002")]
    chosen = support.read_source(subset)
    assert [item.key for item in chosen] == ["00000/0000", "00000/0003", "00002/0001"]
    assert chosen == [item for item in support.read_source(source) if item.key in subset.keys]
