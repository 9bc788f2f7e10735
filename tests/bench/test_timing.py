"""Helpers of all benchmarks."""

from sharelock_ray.bench.timing import alternate, machine, median_ratio


def test_runs_take_turns() -> None:
    order: list[str] = []

    def run(name: str, value: float) -> float:
        order.append(name)
        return value

    found = alternate({"a": lambda: run("a", 1), "b": lambda: run("b", 2)}, repeats=3)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1, 1, 1], "b": [2, 2, 2]}


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is twice as slow in the second round, and four times as slow in the third.
    assert median_ratio([8, 4, 2], [4, 2, 1]) == 2
    assert median_ratio([8, 4, 9], [4, 2, 1]) == 2


def test_the_machine_is_described_with_library_versions() -> None:
    assert "cores" in machine()
    assert "torch" in machine()
