"""How long a stage waits for its resources."""

import pytest

from sharelock_ray.health.capacity import Capacity, wait


@pytest.mark.parametrize(
    ("needed", "scales", "state", "found"),
    [
        ({"CPU": 2, "GPU": 0}, False, "ok", "none: 2 CPU free"),
        ({"CPU": 2, "GPU": 1}, False, "warn", "until other work frees 1 GPU"),
        ({"CPU": 2, "GPU": 4}, False, "fail", "for ever: 2 GPU more than all nodes have"),
        ({"CPU": 2, "GPU": 4}, True, "warn", "minutes, until nodes with 2 GPU more have started"),
        ({"TPU": 1}, False, "fail", "for ever: 1 TPU more than all nodes have"),
    ],
)
def test_is_estimated_from_what_is_free_there_and_addable(
    needed: dict[str, float], scales: bool, state: str, found: str
) -> None:
    capacity = Capacity({"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 0}, scales)
    check = wait("train", needed, capacity)
    assert (check.name, check.state, check.found) == ("wait of train", state, found)
    assert bool(check.remedy) is (state != "ok")
