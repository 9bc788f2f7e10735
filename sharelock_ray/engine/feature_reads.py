"""Streaming of training features: tasks anywhere in the cluster prefetch them for the worker."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError

from sharelock_ray.batches.streaming import Piece
from sharelock_ray.engine import cluster
from sharelock_ray.engine.stream import packed, stream_of, unpacked
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet

# Small blocks, since Ray's object store may hold only a few parts.
_BLOCK_BYTES = 8 << 20
_PREFETCH = 4
# Long enough for a cluster to start a node.
_FREE_CPU_TIMEOUT_S = 600


def read_by_tasks(sets: tuple[FeatureSet, FeatureSet], pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    """Yields the (n, D) embeddings of each piece, in order; a `batches.streaming.Reader`.

    Each task reads, verifies and decodes a part on one CPU of any node, and sends the selected rows.

    Raises:
        RunError: a part does not match its manifest, or no CPU is free for reading.
    """
    if not pieces:
        return
    _require_free_cpu()
    # The consumer may pause for a validation, or for another worker's reads.
    stream = stream_of(pieces, in_order=True, may_pause=True).map_batches(
        _read, fn_args=(sets,), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    with cluster.readable_errors("streaming of features"):
        blocks = map(unpacked, stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=_PREFETCH))
        for piece in pieces:
            # A copy releases the block's memory in Ray's object store.
            found = np.empty((len(piece.rows), sets[piece.side].manifest.dim), sets[piece.side].manifest.dtype)
            start = 0
            while start < len(found):
                block = next(blocks)
                found[start : start + len(block)] = block
                start += len(block)
            yield found


def _require_free_cpu() -> None:
    """Raises RunError if no CPU becomes free; Ray Data itself would wait silently."""
    free = _no_op.remote()
    try:
        ray.get(free, timeout=_FREE_CPU_TIMEOUT_S)
    except GetTimeoutError:
        ray.cancel(free)
        raise RunError(
            f"no CPU was free for {_FREE_CPU_TIMEOUT_S} s to read features on: "
            f"add a node, or lower operations.training.num_workers or num_cpus"
        ) from None


@ray.remote(num_cpus=1)
def _no_op() -> None:
    pass


def _read(table: pa.Table, sets: tuple[FeatureSet, FeatureSet]) -> Iterator[pa.Table]:
    piece: Piece = unpacked(table)
    found = sets[piece.side].part_embeddings(piece.part, piece.rows)
    rows = max(1, _BLOCK_BYTES * len(found) // found.nbytes)
    for start in range(0, len(found), rows):
        yield packed(found[start : start + rows], arrays=1)
