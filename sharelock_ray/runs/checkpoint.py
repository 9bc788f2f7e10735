"""Checkpoints: a folder with a safetensors file and a `checkpoint.json`, written last, that names it.

The name of the safetensors file contains the step and its SHA-256. Writing `checkpoint.json` replaces a checkpoint
atomically, on a local disk and on an object store: readers see the old one or the new one.
"""

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save

from sharelock_ray import storage
from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.optimizer import Optimizer
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.manifest import Manifest
from sharelock_ray.runs.background import Background
from sharelock_ray.runs.folder import CHECKPOINT, RunFolder

_HEADS, _OPTIMIZER, _AVERAGE = "heads.", "optimizer.", "average."
# Minimum pause after a write, as a multiple of its duration: writes take at most a tenth of the time.
_PAUSE_PER_WRITE = 9


class Side(Config):
    """The frozen encoder of one side: its spec, its weights' hash, and the width D of its embeddings."""

    encoder: EncoderSpec
    weights_sha256: str | None
    dim: Annotated[int, Field(ge=1)]

    @property
    def identity(self) -> str:
        """Identity of the encoder; the projection fits feature sets with the same one."""
        return self.encoder.identity(self.weights_sha256)


class Position(Config):
    """State of the training loop that a resume needs, in addition to the tensors."""

    step: int
    """Optimizer steps done."""
    best_value: float | None = None
    """Best value of the monitored metric: validation loss or recall at 1."""
    best_step: int = 0
    patience_value: float | None = None
    """Reference value of early stopping: a gain must exceed it by `min_delta`."""
    stale: int = 0
    """Consecutive validations without a gain."""
    seconds: float = 0.0
    """Training time so far, including interrupted runs."""


class Checkpoint(Document):
    """`checkpoint.json`."""

    schema_version = 3

    tensors: str = ""
    """Name of the safetensors file in the same folder."""
    tensors_sha256: str | None = None
    """SHA-256 of that file; None in checkpoints of earlier versions."""
    spec: AlignmentSpec
    vision: Side
    language: Side
    position: Position
    metrics: dict[str, float]
    pairing: dict[str, str] = Field(default_factory=dict)
    """What identifies the `Pairing`, such as the hash of the split of concepts. Empty in documents of version 2 and
    earlier."""

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if (self.vision.encoder.modality, self.language.encoder.modality) != ("vision", "language"):
            raise ValueError("the vision and language encoders are swapped")
        return self


_Snapshot = tuple[Checkpoint, dict[str, torch.Tensor]]
"""A checkpoint and copies of its tensors."""


def side_of(manifest: Manifest) -> Side:
    """The frozen encoder that made a feature set."""
    return Side.model_validate(
        {"encoder": manifest.encoder, "weights_sha256": manifest.weights_sha256, "dim": manifest.dim}
    )


class CheckpointWriter:
    """Writes the checkpoints `best` and `last` of a training on a background thread.

    The paper's head with its optimizer state has 0.9 GB, which takes seconds to write, while a step takes about 10 ms
    on a GPU. Therefore writing is limited to a tenth of the time: `is_due` tells when a write is allowed, and a new
    `best` stays in memory until then. As a context manager, it waits for all writes at the end.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._thread = Background()
        self._best: _Snapshot | None = None
        self._ended, self._seconds = -math.inf, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._publish_best()
        self._thread.__exit__(kind, *error)

    @property
    def is_due(self) -> bool:
        """Whether writing a checkpoint now keeps writes within their share of the time."""
        return not self._thread.is_busy and time.monotonic() - self._ended >= _PAUSE_PER_WRITE * self._seconds

    def keep_best(self, checkpoint: Checkpoint, heads: Heads) -> None:
        """Keeps a copy of `heads` as the best; the next `save` or `wait` writes it."""
        self._best = checkpoint, _snapshot(heads)

    def save(
        self,
        checkpoint: Checkpoint,
        heads: Heads,
        optimizer: Optimizer,
        average: Heads | None = None,
        after: Future[None] | None = None,
    ) -> None:
        """Queues the write of the kept best and then of the current state as `last`, from which training can resume.

        Waits for an earlier write, so that only one copy is in memory.

        Args:
            after: must be done before the write starts.
        """
        self._thread.wait()
        last = checkpoint, _snapshot(heads, optimizer, average)
        best, self._best = self._best, None
        self._thread.submit(self._publish_both, best, last, after)

    def wait(self) -> None:
        """Waits until all kept and saved checkpoints are written.

        Raises:
            RequestError, RunError: a write failed.
        """
        self._publish_best()
        self._thread.wait()

    def _publish_best(self) -> None:
        best, self._best = self._best, None
        if best is not None:
            self._thread.submit(_publish, self._run.best, *best)

    def _publish_both(self, best: _Snapshot | None, last: _Snapshot, after: Future[None] | None) -> None:
        started = time.monotonic()
        if after is not None:
            after.result()
        # In this order: `last` must not refer to a `best` whose write failed.
        if best is not None:
            _publish(self._run.best, *best)
        _publish(self._run.last, *last)
        self._ended = time.monotonic()
        self._seconds = self._ended - started


def _snapshot(
    heads: Heads, optimizer: Optimizer | None = None, average: Heads | None = None
) -> dict[str, torch.Tensor]:
    """Copies of the tensors of a checkpoint, by their names in its file."""
    tensors = {f"{_HEADS}{name}": value for name, value in heads.state_dict().items()}
    if optimizer is not None:
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in optimizer.state().items()}
    if average is not None:
        tensors |= {f"{_AVERAGE}{name}": value for name, value in average.state_dict().items()}
    return {name: _cpu_copy(value) for name, value in tensors.items()}


def _cpu_copy(value: torch.Tensor) -> torch.Tensor:
    """A copy in CPU memory; pinned for a GPU tensor, since torch reuses pinned memory for the next checkpoint."""
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)


def _publish(folder: str, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a checkpoint to `folder` unless it holds the same or a later step, and removes older tensors.

    The tensors of the replaced checkpoint stay, for readers that have read its JSON but not yet its tensors. Workers of
    a dead driver may run beside those of a new one: neither replaces a later step, nor removes tensors that the other
    is about to publish.
    """
    data = save({key: value.contiguous() for key, value in tensors.items()})
    digest = storage.sha256(data)
    name = f"step-{checkpoint.position.step:08d}-{digest[:8]}.safetensors"
    storage.write_bytes(storage.join(folder, name), data)
    replaced = read_checkpoint(folder) if has_checkpoint(folder) else None
    if replaced is not None and replaced.position.step >= checkpoint.position.step:
        return
    published = checkpoint.model_copy(update={"tensors": name, "tensors_sha256": digest})
    storage.write_json(storage.join(folder, CHECKPOINT), published.content())
    for old in storage.names(folder):
        # Names sort by step.
        if replaced is not None and old.endswith(".safetensors") and old < replaced.tensors:
            storage.remove(storage.join(folder, old))


def has_checkpoint(folder: str) -> bool:
    return storage.exists(storage.join(folder, CHECKPOINT))


def read_checkpoint(folder: str) -> Checkpoint:
    """Reads `checkpoint.json` in `folder`.

    Raises:
        RequestError: it is missing, cannot be read, or was written by a newer version of this package.
        RunError: it is damaged.
    """
    path = storage.join(folder, CHECKPOINT)
    try:
        return read_document(Checkpoint, path, f"delete {folder} and train again")
    except FileNotFoundError:
        raise RequestError(
            f"{folder} holds no trained model ({CHECKPOINT} is missing): run `sharelock train`"
        ) from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror or error})") from None


def load_heads(folder: str, checkpoint: Checkpoint) -> Heads:
    """The trained projections of a checkpoint, on the CPU.

    Raises:
        RunError: the tensors are missing or damaged.
    """
    with _loading(folder, checkpoint) as tensors:
        heads = Heads(checkpoint.spec, checkpoint.vision.dim, checkpoint.language.dim)
        heads.load_state_dict(_with_prefix(tensors, _HEADS))
    return heads


def restore(
    folder: str, checkpoint: Checkpoint, heads: Heads, optimizer: Optimizer, average: Heads | None = None
) -> None:
    """Loads the checkpoint into `heads`, `optimizer` and `average` in place.

    Raises:
        RunError: the tensors are missing or damaged.
    """
    with _loading(folder, checkpoint) as tensors:
        heads.load_state_dict(_with_prefix(tensors, _HEADS))
        optimizer.load_state(_with_prefix(tensors, _OPTIMIZER))
        if average is not None:
            average.load_state_dict(_with_prefix(tensors, _AVERAGE))


@contextmanager
def _loading(folder: str, checkpoint: Checkpoint) -> Iterator[dict[str, torch.Tensor]]:
    """Reads and verifies the tensors of a checkpoint; errors of the block, such as other shapes, name their file."""
    path = storage.join(folder, checkpoint.tensors)
    try:
        data = storage.read_bytes(path)
        if checkpoint.tensors_sha256 not in (None, storage.sha256(data)):
            raise RuntimeError("its SHA-256 differs from that in the checkpoint")
        tensors = load(data)
        for name, value in tensors.items():
            # Second moments of the optimizer may overflow without harm to the training.
            if not name.startswith(_OPTIMIZER) and not value.isfinite().all():
                raise RuntimeError(f"{name} is not finite")
        yield tensors
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{path} is damaged or missing ({reason}): delete {folder} and train again") from None


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
