"""All checks of a machine."""

from pathlib import Path

from sharelock_ray.health.access import Peer
from sharelock_ray.health.encoder_weights import Weights
from sharelock_ray.health.examination import Order, examine
from sharelock_ray.health.stores import Nonce, probe_folder, write_nonce

MACHINE = ["GPUs", "memory", "shared memory", "open files", "cache", "spill"]
STORE = ["store", "store speed", "store clock"]


def names(order: Order) -> list[str]:
    return [check.name for check in examine(order).checks]


def test_without_more_to_check_is_of_the_machine() -> None:
    assert names(Order()) == MACHINE


def test_of_a_node_reads_what_the_driver_wrote_first(tmp_path: Path) -> None:
    with probe_folder(str(tmp_path)) as folder:
        order = Order(folder, write_nonce(folder), (Weights("v", "/none"),), (Peer("a", "127.0.0.1", 1),))
        assert names(order) == ["shared output", *MACHINE, "ports", "weights of v", *STORE]


def test_of_a_node_with_another_disk_does_not_check_that_as_the_output(tmp_path: Path) -> None:
    found = examine(Order(str(tmp_path), Nonce(str(tmp_path / "nonce"), "x")))
    assert [check.name for check in found.checks] == ["shared output", *MACHINE]
    assert found.checks[0].state == "fail"
    assert list(tmp_path.iterdir()) == []
