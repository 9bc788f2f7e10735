"""Streams of Python objects through Ray Data."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from sharelock_ray.engine.stream import packed, stream_of, unpacked


@dataclass(frozen=True)
class Content:
    name: str
    arrays: list[np.ndarray]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_object_is_restored_without_copies_of_its_arrays(count: int) -> None:
    arrays = [np.arange(12, dtype=np.float16).reshape(3, 4) + i for i in range(count)]
    table = packed(Content("some", arrays), arrays=3)
    assert table.shape == (1, 4)
    found: Content = unpacked(table)
    assert found.name == "some"
    assert len(found.arrays) == count
    for ours, given in zip(found.arrays, arrays, strict=True):
        assert ours.dtype == given.dtype
        assert np.array_equal(ours, given)
        assert np.shares_memory(ours, given)


@pytest.mark.usefixtures("local_ray")
def test_a_stream_can_keep_the_order_of_its_objects() -> None:
    stream = stream_of([{"number": i} for i in range(20)], in_order=True)
    rows = stream.map_batches(_numbers, batch_size=1, batch_format="pyarrow").iter_rows()
    assert [row["number"] for row in rows] == list(range(20))


def _numbers(table: pa.Table) -> pa.Table:
    return pa.table({"number": [unpacked(table)["number"]]})
