"""Where features lie while they are trained on."""

import time

import psutil
import pytest
import torch

from sharelock_ray.alignment.feeding import ahead, placement


@pytest.mark.parametrize(("share", "kind"), [(0.1, "host"), (10.0, "disk")])
def test_features_lie_in_memory_where_they_fit(share: float, kind: str) -> None:
    needed = int(share * psutil.virtual_memory().available)
    found = placement(needed, torch.device("cpu"))
    assert found.kind == kind
    assert found.reason.startswith(f"{needed / 1e9:,.1f} GB of features, ")


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
