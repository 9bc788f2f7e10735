"""Killed at any moment, or written by several drivers at once, a feature set ends as that of an undisturbed run."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.manifest import Origin, is_complete
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.writer import EncodedChunk, FeatureSetWriter, remove_leftovers
from sharelock_ray.sources.sample import Reject, Shard

SPEC = LanguageSpec(name="made-up", model="none")
SHARDS = [Shard(i, f"{i:05d}", f"data/{i:05d}.tar", 100) for i in range(3)]
ORIGIN = Origin(dataset="d", split="s", encoder=SPEC.model_dump(mode="json"), weights_sha256=None, software={})
CHUNKS = 3
# What changes storage; everything else only looks.
STEPS = ("write_bytes", "create_bytes", "remove")


def chunk(part: int, index: int) -> EncodedChunk:
    keys = [f"{part:05d}/{index}{letter}" for letter in "cab"]
    rejects = [Reject(f"{part:05d}/{index}x", "decode", "OSError", "half a file")]
    return support.encoded("language", keys, seed=10 * part + index, rejects=rejects)


def drive(uri: str, staged: Callable[[int, int], EncodedChunk] = chunk) -> None:
    """What a driver and its workers do, in one process: stage what is not there, seal what is whole, finish."""
    writer = FeatureSetWriter(uri, "language", "float16")
    if is_complete(uri):
        remove_leftovers(uri)
        return
    writer.start(SHARDS, chunk_size=4)
    for shard in SHARDS:
        part = writer.staged_part(shard.index)
        for index in range(CHUNKS):
            if not part.has_chunk(index):
                writer.stage(shard.index, index, index == CHUNKS - 1, shard.uri, staged(shard.index, index))
        writer.seal(shard.index)
    writer.finish(SHARDS, ORIGIN, gpus=0, wall_seconds=0)


def in_child(work: Callable[[], None]) -> int:
    """Starts `work` in a fork of this process; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(uri: str) -> dict[str, bytes]:
    """Everything that is in a feature set, but for the time in its manifest."""
    filesystem, folder = storage.resolve(uri)
    found = {path.removeprefix(f"{folder}/"): filesystem.cat_file(path) for path in filesystem.find(folder)}
    manifest = open_features(uri).manifest.model_copy(update={"created": "", "encoder_seconds": 0})
    return found | {"manifest.json": manifest.model_dump_json().encode()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    uri = str(tmp_path_factory.mktemp("undisturbed") / "set")
    drive(uri)
    return files(uri)


def kill_at(moment: int) -> None:
    """Kills this process before its step of this number that changes storage, and so after the one before it."""
    count = 0

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object) -> object:
            nonlocal count
            count += 1
            if moment == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        return run

    for name in STEPS:
        setattr(storage, name, counted(getattr(storage, name)))


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def test_killed_at_any_moment_the_next_run_ends_as_an_undisturbed_one(root: str, undisturbed: dict[str, bytes]) -> None:
    # A store takes longer for each, and there every second one has to do.
    for moment in range(1, 100, 1 if storage.is_local(root) else 2):
        uri = storage.join(root, str(moment))

        def killed(uri: str = uri, moment: int = moment) -> None:
            kill_at(moment)
            drive(uri)

        if (status := status_of(in_child(killed))) == 0:
            break  # It has fewer steps than that.
        assert status == -signal.SIGKILL
        done = is_complete(uri)
        before = {name: storage.version(storage.join(uri, name)) for name in storage.names(uri) if "part" in name}
        drive(uri)
        assert files(uri) == undisturbed
        if done:
            assert {name: storage.version(storage.join(uri, name)) for name in before} == before
    assert moment > 20


def test_a_run_after_a_kill_stages_no_chunk_again(tmp_path: Path) -> None:
    def killed() -> None:
        kill_at(7)  # Begun, three chunks, the part's two files, and before its record.
        drive(str(tmp_path))

    assert status_of(in_child(killed)) == -signal.SIGKILL
    again: list[tuple[int, int]] = []

    def counted(part: int, index: int) -> EncodedChunk:
        again.append((part, index))
        return chunk(part, index)

    drive(str(tmp_path), counted)
    assert again == [(part, index) for part in (1, 2) for index in range(CHUNKS)]


@pytest.mark.parametrize("seed", range(8))
def test_drivers_that_race_leave_one_sound_set(tmp_path: Path, seed: int, undisturbed: dict[str, bytes]) -> None:
    """Each driver rounds otherwise, as another machine does, so that a mixture of their files would show."""
    uri = str(tmp_path / "set")

    def racing(driver: int) -> None:
        generator = random.Random(f"{seed} {driver}")

        def slowly(part: int, index: int) -> EncodedChunk:
            time.sleep(generator.choice([0, 0, 0.001, 0.01]))
            made = chunk(part, index)
            made.embeddings *= np.float32(1 + 1e-3 * driver)
            return made

        drive(uri, slowly)

    children = [in_child(lambda driver=driver: racing(driver)) for driver in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    inputs = [f"{shard.index:05d}/{i}{letter}" for shard in SHARDS for i in range(CHUNKS) for letter in "abcx"]
    assert audit(open_features(uri), inputs).problems == []
    assert files(uri).keys() == undisturbed.keys()


@pytest.mark.parametrize("name", ["part-00001.parquet", "rejects/part-00001.parquet"])
def test_a_part_that_a_disk_has_lost_is_made_again_and_no_other(
    tmp_path: Path, undisturbed: dict[str, bytes], name: str
) -> None:
    uri = str(tmp_path / "set")

    def killed() -> None:
        kill_at(17)  # All parts are sealed, and the manifest comes next.
        drive(uri)

    assert status_of(in_child(killed)) == -signal.SIGKILL
    (tmp_path / "set" / name).unlink()
    with pytest.raises(RunError, match=r"part-00001\.parquet of .* is gone: run extract again"):
        drive(uri)
    assert not is_complete(uri)
    again: set[int] = set()

    def counted(part: int, index: int) -> EncodedChunk:
        again.add(part)
        return chunk(part, index)

    drive(uri, counted)
    assert again == {1}
    assert files(uri) == undisturbed


def test_files_that_killed_writes_have_left_are_removed(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    uri = str(tmp_path / "set")
    for _ in ("with the manifest", "where it is there"):
        for folder in (tmp_path / "set", tmp_path / "set" / "rejects"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".tmp-abc").write_bytes(b"half")
        drive(uri)
        assert files(uri) == undisturbed


def test_leftovers_of_other_inputs_are_replaced(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    uri = str(tmp_path / "set")
    drive(uri, lambda part, index: support.encoded("language", [f"old/{part}{index}"]))
    (tmp_path / "set" / "manifest.json").unlink()
    # Of more parts, and of a part that had rejects where now are none.
    for name in ("part-00003.parquet", "rejects/part-00003.parquet"):
        storage.write_bytes(f"{uri}/{name}", b"old")
    drive(uri)
    assert files(uri) == undisturbed
