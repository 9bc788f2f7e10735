"""Data placement: where features are kept during training."""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import support
from sharelock_ray.batches import placement as placement_module
from sharelock_ray.batches.placement import DeviceCache, MappedRows, Placement, placement, prefetched
from sharelock_ray.features.featureset import FeatureSet, open_features

CPU = torch.device("cpu")


@pytest.fixture
def sets(tmp_path: Path) -> list[FeatureSet]:
    return [open_features(uri) for uri in support.write_feature_sets(tmp_path, pairs=60)]


@pytest.mark.parametrize(("share", "kind"), [(0.1, "host"), (10.0, "disk")])
def test_features_are_kept_in_memory_if_they_fit(
    sets: list[FeatureSet], monkeypatch: pytest.MonkeyPatch, share: float, kind: str
) -> None:
    needed = sum(features.nbytes for features in sets)
    memory = psutil.virtual_memory()._replace(available=int(needed / share))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert placement(*sets, CPU) == Placement(
        kind, f"0.0 GB of features, {memory.available / 1e9:,.1f} GB of memory available"
    )


def test_features_stay_in_storage_if_the_disk_has_no_room_for_the_rest_of_them(
    sets: list[FeatureSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(features.nbytes for features in sets)
    monkeypatch.setattr(placement_module, "room", lambda: needed - 1)
    found = placement(*sets, CPU)
    assert found.kind == "storage"
    assert found.reason.startswith("0.0 GB of features, 0.0 GB free for them in ")
    # Opening one set writes it to the disk, so the remaining set fits.
    assert sets[1].embeddings.shape == (60, 16)
    assert placement(*sets, CPU).kind == "host"


@pytest.mark.parametrize("rows", [1, 31, 100])
def test_threads_that_read_a_disk_gather_the_right_rows(sets: list[FeatureSet], rows: int) -> None:
    chosen = tuple(np.random.default_rng(i).integers(0, 60, rows) for i in range(2))
    store = MappedRows(*sets, CPU, Placement("disk", "set by the test"))
    ((gathered, found),) = store.gather([[chosen]], max_rows=100)
    assert gathered is chosen
    for values, features, own in zip(found, sets, chosen, strict=True):
        assert torch.equal(values, features.embeddings[own])


def test_sets_stay_on_the_device_until_they_are_evicted(sets: list[FeatureSet]) -> None:
    vision, language = sets
    device_cache = DeviceCache()
    assert device_cache.missing_nbytes(*sets) == vision.nbytes + language.nbytes
    table = device_cache.table(vision, CPU)
    assert torch.equal(table, vision.embeddings)
    assert device_cache.missing_nbytes(*sets) == language.nbytes
    # The same set, opened again, uses the same memory.
    assert device_cache.table(open_features(vision.uri), CPU) is table
    device_cache.evict_except(vision)
    assert device_cache.table(vision, CPU) is table
    device_cache.evict_except(language)
    assert device_cache.missing_nbytes(*sets) == vision.nbytes + language.nbytes


def test_the_next_item_is_produced_while_one_is_used() -> None:
    begun: list[int] = []

    def make(i: int) -> int:
        begun.append(i)
        return i

    work = prefetched(make(i) for i in range(4))
    assert next(work) == 0
    deadline = time.monotonic() + 10
    while begun != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    # Only one item is prefetched: the memory of the others is still in use.
    time.sleep(0.05)
    assert begun == [0, 1]
    assert list(work) == [1, 2, 3]
    assert list(prefetched([])) == []
