"""Forward passes get smaller where memory does not suffice, and every row still comes out once, in its place."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sharelock_ray.encoders.passes import Encoded, Passes
from sharelock_ray.errors import RunError

SMALLEST = (np.array([0]),)


class Device:
    """A model that has memory for `capacity` rows, and never for a row of `too_large`."""

    def __init__(self, capacity: int, too_large: frozenset[int] = frozenset()) -> None:
        self.capacity, self.too_large = capacity, too_large
        self.passes: list[int] = []

    def forward(self, rows: torch.Tensor) -> list[torch.Tensor]:
        self.passes.append(len(rows))
        if len(rows) > self.capacity or self.too_large & set(rows.tolist()):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [rows[:, None].float(), rows[:, None] * torch.ones(3)]

    def run(self, passes: Passes, rows: int) -> Encoded:
        return passes.run(rows, [1, 3], halves, lambda batch: (np.array(batch),), self.forward, SMALLEST)


def halves(rows, limit):
    return [list(rows[start : start + limit]) for start in range(0, len(rows), limit)]


def new(limit: int) -> Passes:
    return Passes(torch.device("cpu"), limit)


def test_are_as_large_as_they_may_be() -> None:
    device, passes = Device(8), new(8)
    found = device.run(passes, 20)
    assert device.passes == [8, 8, 4]
    assert [values.shape for values in found.embeddings] == [(20, 1), (20, 3)]
    assert np.array_equal(found.only()[:, 0], np.arange(20))
    assert (passes.limit, found.batch_reductions, found.too_large) == (8, 0, [])


def test_are_halved_for_good_where_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    logger = logging.getLogger("sharelock_ray.encoders.passes")
    monkeypatch.setattr(logger, "handle", lambda record: said.append(record.getMessage()))
    device, passes = Device(5), new(16)
    found = device.run(passes, 20)
    assert device.passes == [16, 8, 4, 4, 4, 4, 4]
    assert np.array_equal(found.only()[:, 0], np.arange(20))
    assert (passes.limit, found.batch_reductions) == (4, 2)
    assert said == [f"out of memory on cpu: at most {limit} per forward pass from now on" for limit in (8, 4)]
    assert device.run(passes, 8).batch_reductions == 0
    assert device.passes[7:] == [4, 4]


def test_are_halved_until_they_are_smaller_than_the_one_that_failed() -> None:
    device, passes = Device(1), new(64)
    found = device.run(passes, 3)
    assert np.array_equal(found.only()[:, 0], np.arange(3))
    # 32, 16, 8 and 4 would have been the same pass again.
    assert device.passes == [3, 2, 1, 1, 1]
    assert (passes.limit, found.batch_reductions) == (1, 2)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)",
    ],
)
def test_are_halved_whatever_says_that_memory_does_not_suffice(message: str) -> None:
    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        if len(rows) > 2:
            raise RuntimeError(message)
        return [rows[:, None].float()]

    found = new(4).run(4, [1], halves, lambda batch: (np.array(batch),), forward, SMALLEST)
    assert np.array_equal(found.only()[:, 0], np.arange(4))
    assert found.batch_reductions == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharelock_ray.encoders.passes._WAITS_S", (0.01, 0.01, 0.01))


@pytest.mark.usefixtures("impatient")
def test_of_a_single_row_are_tried_again_while_a_neighbour_has_the_memory() -> None:
    tries = 0

    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [rows[:, None].float()]

    found = new(1).run(2, [1], halves, lambda batch: (np.array(batch),), forward, SMALLEST)
    assert (found.too_large, tries) == ([], 5)


@pytest.mark.usefixtures("impatient")
def test_of_a_row_that_does_not_fit_alone_give_nothing_and_the_others_go_on() -> None:
    found = Device(4, frozenset({2, 6})).run(new(4), 8)
    assert found.too_large == [2, 6]
    for values in found.embeddings:
        assert np.flatnonzero(np.isnan(values).any(1)).tolist() == [2, 6]
        kept = [0, 1, 3, 4, 5, 7]
        assert np.array_equal(values[kept, 0], kept)
    with pytest.raises(RunError, match="input 2 does not fit into the device's memory"):
        found.only()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_end_the_run_where_the_memory_is_gone_for_any_input(error: Exception) -> None:
    """No input is to blame for memory that another process has."""

    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        raise error

    with pytest.raises(RunError, match="out of memory on cpu, even for the smallest input"):
        new(4).run(2, [1], halves, lambda batch: (np.array(batch),), forward, SMALLEST)


def test_of_nothing_give_the_right_widths() -> None:
    assert [values.shape for values in Device(4).run(new(4), 0).embeddings] == [(0, 1), (0, 3)]


def test_any_other_error_is_not_taken_for_a_lack_of_memory() -> None:
    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side assert"):
        new(4).run(2, [1], halves, lambda batch: (np.array(batch),), forward, SMALLEST)


def test_of_two_threads_take_turns_and_their_time_is_counted_once() -> None:
    at_once, most = 0, 0

    def forward(rows: torch.Tensor) -> list[torch.Tensor]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1
        return [rows[:, None].float()]

    begun = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(new(2).run, 6, [1], halves, lambda batch: (np.array(batch),), forward, SMALLEST)
            for _ in range(2)
        ]
        found = [job.result() for job in jobs]
    assert most == 1
    assert all(np.array_equal(each.only()[:, 0], np.arange(6)) for each in found)
    assert 0.06 <= sum(each.seconds for each in found) <= time.perf_counter() - begun
