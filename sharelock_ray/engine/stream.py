"""Streams of Python objects through Ray Data. Each object is a block of one row, so that it is passed on at once."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext

# Every object that a function yields becomes its own block.
_BLOCK_BYTES = 1
# Ray's default. Not less, since no block is finished while a large model is downloaded or encodes on a CPU.
_NO_PROGRESS_S = 1800
# Maximum number of finished blocks that the consumer of a task has not taken; beyond it, the task waits and holds its
# CPU.
_UNLIMITED = 1 << 20


def stream_of(objects: Sequence[object], in_order: bool = False, may_pause: bool = False) -> ray.data.Dataset:
    """A Ray dataset of these objects; map functions over it with `batch_size=1`.

    Args:
        in_order: whether results keep the order of the objects.
        may_pause: whether the consumer may pause for long. Tasks then finish without waiting for it and release their
            CPUs; otherwise a pause of half an hour is an error.
    """
    # A copy, since the host may have other streams.
    context = DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1 if may_pause else _NO_PROGRESS_S
    if may_pause:
        context._max_num_blocks_in_streaming_gen_buffer = _UNLIMITED
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.preserve_order = in_order
    items = [{"object": pickle.dumps(each)} for each in objects]
    with DataContext.current(context):
        return ray.data.from_items(items, override_num_blocks=len(items))


def packed(content: object, arrays: int) -> pa.Table:
    """A table of one row that holds `content`; up to `arrays` NumPy arrays get their own columns and are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    contents = [head, *buffers, *[b""] * (arrays - len(buffers))]
    return pa.table({f"object{i}": _binary(each) for i, each in enumerate(contents)})


def unpacked(table: pa.Table) -> Any:
    """The object in a table of one row; its arrays are read-only views of the table."""
    head, *buffers = map(_content, table.columns)
    return pickle.loads(head, buffers=buffers)


def _binary(content: object) -> pa.LargeBinaryArray:
    values = pa.py_buffer(content)
    ends = pa.py_buffer(np.array([0, values.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, values])


def _content(column: pa.ChunkedArray) -> pa.Buffer:
    # `column[0].as_buffer()` would copy.
    array = column.chunk(0).cast(pa.large_binary())
    _, ends, values = array.buffers()
    start, end = np.frombuffer(ends, np.int64)[array.offset : array.offset + 2]
    return values.slice(start, end - start)
