"""Features of a training that are read by tasks all over the cluster, ahead of the worker that wants them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError

from sharelock_ray import engine
from sharelock_ray.alignment.streaming import Piece
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.ray_data import packed, stream_of, unpacked

# Ray's store may be no larger than a few parts.
_BLOCK_BYTES = 8 << 20
_AHEAD = 4
# A cluster may have to start a node first.
_PATIENCE_S = 600


def read_by_tasks(sets: tuple[FeatureSet, FeatureSet], pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    """The embeddings (n, D) of each of the pieces, in their order; an `alignment.streaming.Reader`.

    Each task reads, verifies and decodes a part on one CPU, wherever the cluster has one, and sends the wanted rows.

    Raises:
        RunError: a part is not what its manifest says, or Ray has no CPU to read on.
    """
    if not pieces:
        return
    _require_free_cpu()
    # In between may come a validation, which reads by itself, or a step that waits for another worker, which does.
    stream = stream_of(pieces, in_order=True, may_rest=True).map_batches(
        _read, fn_args=(sets,), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    with engine.readable_errors("streaming of features"):
        blocks = map(unpacked, stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=_AHEAD))
        for piece in pieces:
            # A copy, so that Ray's store has room for what follows.
            found = np.empty((len(piece.rows), sets[piece.side].manifest.dim), sets[piece.side].manifest.dtype)
            start = 0
            while start < len(found):
                block = next(blocks)
                found[start : start + len(block)] = block
                start += len(block)
            yield found


def _require_free_cpu() -> None:
    """Raises where nothing can be read; Ray Data itself would wait in silence."""
    free = _nothing.remote()
    try:
        ray.get(free, timeout=_PATIENCE_S)
    except GetTimeoutError:
        ray.cancel(free)
        raise RunError(
            f"no CPU was free for {_PATIENCE_S} s to read features on: "
            f"add a node, or lower operations.training.num_workers or num_cpus"
        ) from None


@ray.remote(num_cpus=1)
def _nothing() -> None:
    pass


def _read(table: pa.Table, sets: tuple[FeatureSet, FeatureSet]) -> Iterator[pa.Table]:
    piece: Piece = unpacked(table)
    found = sets[piece.side].part_embeddings(piece.part, piece.rows)
    rows = max(1, _BLOCK_BYTES * len(found) // found.nbytes)
    for start in range(0, len(found), rows):
        yield packed(found[start : start + rows], arrays=1)
