"""Where features lie while they are trained on."""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import support
from sharelock_ray.alignment import feeding
from sharelock_ray.alignment.feeding import Placement, RowStore, ahead, placement
from sharelock_ray.features.featureset import open_features


@pytest.mark.parametrize(("share", "kind"), [(0.1, "host"), (10.0, "disk")])
def test_features_lie_in_memory_where_they_fit(share: float, kind: str) -> None:
    needed = int(share * psutil.virtual_memory().available)
    found = placement(needed, torch.device("cpu"))
    assert found.kind == kind
    assert found.reason.startswith(f"{needed / 1e9:,.1f} GB of features, ")


@pytest.mark.parametrize("rows", [1, 31, 100])
def test_many_readers_of_a_disk_gather_what_one_of_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    sets = [open_features(uri) for uri in support.write_feature_sets(tmp_path, pairs=60)]
    chosen = tuple(np.random.default_rng(i).integers(0, 60, rows) for i in range(2))
    monkeypatch.setattr(feeding, "placement", lambda needed, device: Placement("disk", "as the test wants it"))
    store = RowStore(*sets, torch.device("cpu"))
    found = store.gather(chosen, store.buffers(rows))
    for of, features, own in zip(found, sets, chosen, strict=True):
        assert torch.equal(of, features.embeddings[own])


def test_the_next_is_made_while_one_is_used() -> None:
    begun: list[int] = []

    def make(i: int) -> int:
        begun.append(i)
        return i

    work = ahead(lambda i=i: make(i) for i in range(4))
    assert next(work) == 0
    deadline = time.monotonic() + 10
    while begun != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    # One more, and no further: its memory is still in use.
    time.sleep(0.05)
    assert begun == [0, 1]
    assert list(work) == [1, 2, 3]
    assert list(ahead([])) == []
