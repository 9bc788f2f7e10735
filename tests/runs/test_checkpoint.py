"""Checkpoints are restored exactly, and replaced atomically."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import support
from sharelock_ray import storage
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.optimizer import Adam
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.runs.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Position,
    Side,
    has_checkpoint,
    load_heads,
    read_checkpoint,
    restore,
)
from sharelock_ray.runs.folder import RunFolder

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=3, width=16, dropout=0.1), learn_logit_scale=True, logit_scale=20, weight_decay=0
)
VISION = Side(encoder=VisionSpec(name="v", model="none"), weights_sha256="0" * 64, dim=12)
LANGUAGE = Side(encoder=LanguageSpec(name="l", model="none"), weights_sha256=None, dim=8)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    if request.param == "local":
        yield RunFolder(str(tmp_path / "run"))
    else:
        yield RunFolder("memory://checkpoint-test/run")
        storage.remove("memory://checkpoint-test")


@pytest.fixture
def folder(run: RunFolder) -> str:
    return run.best


def save_best(run: RunFolder, checkpoint: Checkpoint, trained: Heads) -> None:
    with CheckpointWriter(run) as checkpoints:
        checkpoints.keep_best(checkpoint, trained)


def heads(seed: int) -> Heads:
    torch.manual_seed(seed)
    return Heads(SPEC, VISION.dim, LANGUAGE.dim)


def optimizer_of(trained: Heads) -> Adam:
    return Adam({name: p for name, p in trained.named_parameters() if p.requires_grad})


def take_steps(trained: Heads, optimizer: Adam, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(30, LANGUAGE.dim, generator=torch.Generator().manual_seed(seed))
        trained.zero_grad()
        (trained.logit_scale * trained.language.eval()(x)[:, 0]).sum().backward()
        optimizer.step(1e-3)


def described(step: int) -> Checkpoint:
    position = Position(step=step, best_value=0.1, best_step=7, patience_value=0.2, stale=3, seconds=1.5)
    return Checkpoint(spec=SPEC, vision=VISION, language=LANGUAGE, position=position, metrics={"loss": 1 / 3})


def steps(folder: str) -> list[int]:
    """The steps of the tensors in a checkpoint folder, which must contain nothing else."""
    *tensors, description = sorted(storage.names(folder), reverse=True)
    assert description == "checkpoint.json"
    return sorted(int(name.removeprefix("step-").split("-")[0]) for name in tensors)


def equal(one: Heads, other: Heads) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_checkpoint_is_restored_exactly(run: RunFolder, folder: str) -> None:
    assert not has_checkpoint(folder)
    saved = heads(0)
    save_best(run, described(10), saved)
    assert has_checkpoint(folder)
    found = read_checkpoint(folder)
    digest = storage.sha256_of(storage.join(folder, found.tensors))
    assert found == described(10).model_copy(update={"tensors": found.tensors, "tensors_sha256": digest})
    assert equal(load_heads(folder, found), saved)
    assert not equal(load_heads(folder, found), heads(1))


def test_a_restored_optimizer_continues_with_the_same_steps(run: RunFolder) -> None:
    whole = heads(0)
    optimizer = optimizer_of(whole)
    take_steps(whole, optimizer, range(3))
    with CheckpointWriter(run) as checkpoints:
        checkpoints.save(described(3), whole, optimizer)
    restored = heads(1)
    other = optimizer_of(restored)
    restore(run.last, read_checkpoint(run.last), restored, other)
    assert equal(restored, whole)
    take_steps(whole, optimizer, range(3, 6))
    take_steps(restored, other, range(3, 6))
    assert equal(restored, whole)


def test_a_new_checkpoint_keeps_only_the_tensors_of_the_one_it_replaces(run: RunFolder, folder: str) -> None:
    for step in (10, 20, 30):
        save_best(run, described(step), heads(step))
    assert steps(folder) == [20, 30]
    found = read_checkpoint(folder)
    assert found.position.step == 30
    assert equal(load_heads(folder, found), heads(30))


def test_a_reader_finds_a_complete_checkpoint_at_every_moment_of_a_write(
    run: RunFolder, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10):
        save_best(run, described(step), heads(step))
    seen = []

    def reading_first(change):
        def changed(*args: object) -> None:
            found = read_checkpoint(folder)
            assert equal(load_heads(folder, found), heads(found.position.step))
            seen.append(found.position.step)
            change(*args)

        return changed

    for name in ("write_bytes", "write_json", "remove"):
        monkeypatch.setattr(storage, name, reading_first(getattr(storage, name)))
    save_best(run, described(20), heads(20))
    assert (set(seen), seen[-1]) == ({10, 20}, 20)
    assert equal(load_heads(folder, read_checkpoint(folder)), heads(20))


def test_workers_of_a_dead_driver_do_not_replace_a_later_checkpoint(run: RunFolder, folder: str) -> None:
    for step in (10, 20, 30):
        save_best(run, described(step), heads(step))
    save_best(run, described(15), heads(15))
    found = read_checkpoint(folder)
    assert found.position.step == 30
    assert equal(load_heads(folder, found), heads(30))
    save_best(run, described(40), heads(40))
    assert steps(folder) == [30, 40]


def test_two_concurrent_drivers_leave_a_complete_checkpoint_at_every_moment(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    saved = {step: heads(step) for step in range(10, 210, 10)}
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            if has_checkpoint(run.best):
                found = read_checkpoint(run.best)
                try:
                    assert equal(load_heads(run.best, found), saved[found.position.step])
                except RunError:
                    # Two more checkpoints may be written between the two reads.
                    assert read_checkpoint(run.best).position.step >= found.position.step + 20
                seen.append(found.position.step)

    def save(steps: list[int]) -> None:
        for step in steps:
            save_best(run, described(step), saved[step])

    # The second driver has resumed at step 100, while the first has not reached it.
    with ThreadPoolExecutor(3) as pool:
        reading = pool.submit(read)
        for saving in [pool.submit(save, list(saved)[first:]) for first in (0, 10)]:
            saving.result()
        stop.set()
        reading.result()
    assert len(seen) > 1
    assert read_checkpoint(run.best).position.step == 200


def test_a_slow_reader_finds_the_tensors_of_a_replaced_checkpoint(run: RunFolder, folder: str) -> None:
    save_best(run, described(10), heads(10))
    found = read_checkpoint(folder)
    save_best(run, described(20), heads(20))
    assert equal(load_heads(folder, found), heads(10))


def test_a_folder_without_a_checkpoint_is_an_invalid_request(folder: str) -> None:
    with pytest.raises(RequestError, match=r"holds no trained model \(checkpoint\.json is missing\)"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff"])
def test_a_damaged_description_is_an_error_that_names_it(run: RunFolder, folder: str, content: bytes) -> None:
    save_best(run, described(10), heads(0))
    storage.write_bytes(storage.join(folder, "checkpoint.json"), content)
    with pytest.raises(RunError, match=r"checkpoint\.json is damaged") as error:
        read_checkpoint(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "of other shapes"])
def test_damaged_tensors_are_an_error_that_names_them(run: RunFolder, folder: str, damage: str) -> None:
    trained = heads(0)
    optimizer = optimizer_of(trained)
    with CheckpointWriter(run) as checkpoints:
        checkpoints.keep_best(described(10), trained)
        checkpoints.save(described(10), trained, optimizer)
    for place in (folder, run.last):
        checkpoint = read_checkpoint(place)
        path = storage.join(place, checkpoint.tensors)
        if damage == "flipped":
            data = bytearray(storage.read_bytes(path))
            data[-1] ^= 1
            storage.write_bytes(path, bytes(data))
        elif damage == "truncated":
            storage.write_bytes(path, storage.read_bytes(path)[:-10])
        elif damage == "missing":
            storage.remove(path)
        else:
            checkpoint = checkpoint.model_copy(update={"language": LANGUAGE.model_copy(update={"dim": 9})})
        with pytest.raises(RunError, match=r"step-00000010-[0-9a-f]{8}\.safetensors is damaged or missing"):
            load_heads(place, checkpoint)
    if damage != "of other shapes":
        with pytest.raises(RunError, match=r"step-00000010-[0-9a-f]{8}\.safetensors is damaged or missing"):
            restore(run.last, read_checkpoint(run.last), trained, optimizer)


def test_a_checkpoint_without_a_hash_opens_if_its_weights_are_finite(run: RunFolder, folder: str) -> None:
    def older(trained: Heads) -> Checkpoint:
        save_best(run, described(10), trained)
        found = read_checkpoint(folder).model_dump(mode="json")
        storage.write_bytes(storage.join(folder, "old.safetensors"), storage.read_bytes(f"{folder}/{found['tensors']}"))
        storage.remove(folder + "/checkpoint.json")
        del found["tensors_sha256"]
        return Checkpoint.model_validate(found | {"tensors": "old.safetensors"})

    assert equal(load_heads(folder, older(heads(0))), heads(0))
    broken = heads(0)
    with torch.no_grad():
        next(broken.language.parameters()).flatten()[3] = torch.inf
    with pytest.raises(RunError, match=r"old\.safetensors is damaged or missing \(heads\.language\..* is not finite\)"):
        load_heads(folder, older(broken))


class TestWriter:
    def test_saves_a_copy_that_later_steps_do_not_change(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        go_on = support.hold_writes(monkeypatch)
        trained, expected = heads(0), heads(0).state_dict()
        optimizer = optimizer_of(trained)
        with CheckpointWriter(run) as checkpoints:
            checkpoints.keep_best(described(10), trained)
            checkpoints.save(described(10), trained, optimizer)
            trained.load_state_dict(heads(1).state_dict())
            assert not has_checkpoint(run.best)
            go_on.set()
            checkpoints.wait()
            assert has_checkpoint(run.last)
        for folder in (run.best, run.last):
            for name, value in load_heads(folder, read_checkpoint(folder)).state_dict().items():
                assert torch.equal(value, expected[name])

    def test_is_due_only_if_writes_take_at_most_a_tenth_of_the_time(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, trained = [100.0], heads(0)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        go_on = support.hold_writes(monkeypatch)
        with CheckpointWriter(run) as checkpoints:
            assert checkpoints.is_due
            checkpoints.save(described(10), trained, optimizer_of(trained))
            now[0] = 102.0
            assert not checkpoints.is_due
            go_on.set()
            checkpoints.wait()
            assert not checkpoints.is_due
            now[0] = 119.0
            assert not checkpoints.is_due
            now[0] = 120.0
            assert checkpoints.is_due

    def test_keeps_the_best_in_memory_until_the_next_save(self, run: RunFolder) -> None:
        trained = heads(0)
        with CheckpointWriter(run) as checkpoints:
            for step in (10, 20):
                checkpoints.keep_best(described(step), heads(step))
            assert not has_checkpoint(run.best)
            checkpoints.save(described(30), trained, optimizer_of(trained))
            checkpoints.wait()
            assert steps(run.best) == [20]
            assert equal(load_heads(run.best, read_checkpoint(run.best)), heads(20))
            assert read_checkpoint(run.last).position.step == 30
            checkpoints.keep_best(described(40), heads(40))
        assert equal(load_heads(run.best, read_checkpoint(run.best)), heads(40))

    def test_does_not_write_the_last_if_the_write_of_the_best_failed(self, tmp_path: Path) -> None:
        (tmp_path / "best").write_text("A file in place of the folder.")
        run, trained = RunFolder(str(tmp_path)), heads(0)
        with CheckpointWriter(run) as checkpoints:
            checkpoints.keep_best(described(10), trained)
            checkpoints.save(described(10), trained, optimizer_of(trained))
            with pytest.raises(RequestError, match="best"):
                checkpoints.wait()
        assert not has_checkpoint(run.last)

    def test_waits_for_the_future_that_must_come_first(self, run: RunFolder) -> None:
        first: Future[None] = Future()
        trained = heads(0)
        with CheckpointWriter(run) as checkpoints:
            checkpoints.save(described(10), trained, optimizer_of(trained), after=first)
            time.sleep(0.1)
            assert not has_checkpoint(run.last)
            first.set_result(None)
            checkpoints.wait()
        assert has_checkpoint(run.last)

    def test_raises_the_error_of_storage(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(uri: str, data: bytes) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(storage, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            save_best(run, described(10), heads(0))
        assert not has_checkpoint(run.best)
