"""How far a set is, told from storage alone."""

import time
from pathlib import Path

import support
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.features.state import Live, read_live, state_of, write_live
from sharelock_ray.features.writer import FeatureSetWriter
from sharelock_ray.sources.sample import Shard

SHARDS = [Shard(i, str(i), f"{i}.tar", 10) for i in range(3)]


def test_a_set_that_is_not_begun_has_no_parts(tmp_path: Path) -> None:
    state = state_of(str(tmp_path / "nothing"))
    assert (state.manifest, state.parts, state.sealed, state.live) == (None, 0, 0, None)


def test_a_begun_set_tells_its_sealed_parts_and_what_the_driver_said(tmp_path: Path) -> None:
    writer = FeatureSetWriter(str(tmp_path), "vision", "float16")
    writer.start(SHARDS, chunk_size=2)
    for part in (0, 1):
        writer.stage(part, 0, True, "s", support.encoded("vision", [f"{part}/k"]))
    writer.seal(1)
    assert (state_of(str(tmp_path)).parts, state_of(str(tmp_path)).sealed) == (3, 1)
    write_live(str(tmp_path), Live(samples=5, updated=time.time() - 30))
    live = state_of(str(tmp_path)).live
    assert live is not None
    assert live.samples == 5
    assert 30 <= live.age < 60
    # It is no part of the work.
    assert set(writer.staged()) == {0, 1}


def test_a_complete_set_tells_its_manifest(tmp_path: Path) -> None:
    uri = support.write_parts(str(tmp_path), VisionSpec(name="v", model="none"), [[support.encoded("vision", ["a"])]])
    state = state_of(uri)
    assert state.manifest is not None
    assert (state.manifest.rows, state.parts, state.sealed) == (1, 1, 1)
    assert read_live(uri) is None
