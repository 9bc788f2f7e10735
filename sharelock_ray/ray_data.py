"""Streams of Python objects through Ray Data: each is a block of one row, so that it goes on at once."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext

# So that whatever a function yields is a block of its own.
_BLOCK_BYTES = 1
# Ray's own number. Not less: while a large model comes from the hub, or encodes on a CPU, no block moves for minutes.
_NO_PROGRESS_S = 1800
# How many blocks a task may be ahead of whoever takes them, before it waits on its CPU.
_ANY_NUMBER = 1 << 20


def stream_of(objects: Sequence[object], in_order: bool = False, may_rest: bool = False) -> ray.data.Dataset:
    """A stream of these; a function that is mapped over it, with a `batch_size` of 1, is given a table of one.

    Args:
        in_order: whether what is made of them comes in their order.
        may_rest: whether whoever takes from it may take nothing for long. Then tasks end without, and leave their CPUs
            to others; else that is an error after half an hour.
    """
    # Of this stream only: the host may have others.
    context = DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1 if may_rest else _NO_PROGRESS_S
    if may_rest:
        context._max_num_blocks_in_streaming_gen_buffer = _ANY_NUMBER
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.preserve_order = in_order
    items = [{"object": pickle.dumps(each)} for each in objects]
    with DataContext.current(context):
        return ray.data.from_items(items, override_num_blocks=len(items))


def packed(content: object, arrays: int) -> pa.Table:
    """One row that holds `content`; its NumPy arrays are not copied, but in columns of their own, up to so many."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    contents = [head, *buffers, *[b""] * (arrays - len(buffers))]
    return pa.table({f"object{i}": _binary(each) for i, each in enumerate(contents)})


def unpacked(table: pa.Table) -> Any:
    """The object in a table of one row; its arrays lie where the table does, and cannot be written."""
    head, *buffers = map(_content, table.columns)
    return pickle.loads(head, buffers=buffers)


def _binary(content: object) -> pa.LargeBinaryArray:
    values = pa.py_buffer(content)
    ends = pa.py_buffer(np.array([0, values.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, values])


def _content(column: pa.ChunkedArray) -> pa.Buffer:
    # Not `column[0].as_buffer()`, which copies.
    array = column.chunk(0).cast(pa.large_binary())
    _, ends, values = array.buffers()
    start, end = np.frombuffer(ends, np.int64)[array.offset : array.offset + 2]
    return values.slice(start, end - start)
