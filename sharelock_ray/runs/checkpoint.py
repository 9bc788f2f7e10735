"""Checkpoints: a folder with tensors in safetensors, and a `checkpoint.json`, written last, that names them.

The tensors' file carries its step and its SHA-256 in its name, so a checkpoint is replaced by publishing a new JSON:
whoever reads sees the old one or the new one whole, on a disk and on an object store.
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
# As long as a checkpoint was on its way, until the next one is due.
_TIMES_AS_LONG = 9


class Side(Config):
    """The frozen encoder of one side: what loads it again, and the width D of its embedding."""

    encoder: EncoderSpec
    weights_sha256: str | None
    dim: Annotated[int, Field(ge=1)]

    @property
    def identity(self) -> str:
        """Equal for feature sets that this side's projection fits."""
        return self.encoder.identity(self.weights_sha256)


class Position(Config):
    """Where training stands: enough to go on as if nothing had happened."""

    step: int
    """Optimizer steps done."""
    best_value: float | None = None
    """Of what is monitored: the validation loss, or recall at 1."""
    best_step: int = 0
    patience_value: float | None = None
    """Value that the next gain is measured from."""
    stale: int = 0
    """Validations in a row without a gain."""
    seconds: float = 0.0
    """Of training so far, over all runs."""


class Checkpoint(Document):
    """`checkpoint.json`."""

    schema_version = 2

    tensors: str = ""
    """Name of the tensors' file in the same folder."""
    tensors_sha256: str | None = None
    """Of that file; None where the version that wrote it did not know it yet."""
    spec: AlignmentSpec
    vision: Side
    language: Side
    position: Position
    metrics: dict[str, float]

    @model_validator(mode="after")
    def _sides(self) -> Self:
        if (self.vision.encoder.modality, self.language.encoder.modality) != ("vision", "language"):
            raise ValueError("an encoder is not on its side")
        return self


_Snapshot = tuple[Checkpoint, dict[str, torch.Tensor]]
"""A checkpoint, and copies of its tensors."""


def side_of(manifest: Manifest) -> Side:
    """The frozen encoder that made a feature set."""
    return Side.model_validate(
        {"encoder": manifest.encoder, "weights_sha256": manifest.weights_sha256, "dim": manifest.dim}
    )


class CheckpointWriter:
    """Publishes a training's `best` and `last` in a thread, while it goes on.

    The paper's head with its optimizer is 0.9 GB, for which a disk or an object store takes seconds and a GPU's step a
    hundredth of one. So writing is to take a tenth of the time: `is_due` says when, and a better `best` waits in memory
    until then. As a context manager it ends when all is published.
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
        """Whether the next checkpoint would take no more than its share of the time."""
        return not self._thread.is_busy and time.monotonic() - self._ended >= _TIMES_AS_LONG * self._seconds

    def keep_best(self, checkpoint: Checkpoint, heads: Heads) -> None:
        """Has what `heads` are now published as the best, with the next `save` or at the next `wait`."""
        self._best = checkpoint, _copies(heads)

    def save(
        self,
        checkpoint: Checkpoint,
        heads: Heads,
        optimizer: Optimizer,
        average: Heads | None = None,
        after: Future[None] | None = None,
    ) -> None:
        """Publishes what these are now, from which training can go on, behind the best so far.

        Until it is published a copy of it is in memory; where another one is still on its way, this call waits for it.

        Args:
            after: what has to be done before.
        """
        self._thread.wait()
        last = checkpoint, _copies(heads, optimizer, average)
        best, self._best = self._best, None
        self._thread.do(self._publish_both, best, last, after)

    def wait(self) -> None:
        """Returns once all that was kept or saved is published.

        Raises:
            RequestError, RunError: storage refused it.
        """
        self._publish_best()
        self._thread.wait()

    def _publish_best(self) -> None:
        best, self._best = self._best, None
        if best is not None:
            self._thread.do(_publish, self._run.best, *best)

    def _publish_both(self, best: _Snapshot | None, last: _Snapshot, after: Future[None] | None) -> None:
        started = time.monotonic()
        if after is not None:
            after.result()
        # In this order: a `last` must not speak of a `best` that could not be published.
        if best is not None:
            _publish(self._run.best, *best)
        _publish(self._run.last, *last)
        self._ended = time.monotonic()
        self._seconds = self._ended - started


def _copies(heads: Heads, optimizer: Optimizer | None = None, average: Heads | None = None) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of these, in memory of its own."""
    tensors = {f"{_HEADS}{name}": value for name, value in heads.state_dict().items()}
    if optimizer is not None:
        tensors |= {f"{_OPTIMIZER}{name}": value for name, value in optimizer.state().items()}
    if average is not None:
        tensors |= {f"{_AVERAGE}{name}": value for name, value in average.state_dict().items()}
    return {name: _copied(value) for name, value in tensors.items()}


def _copied(value: torch.Tensor) -> torch.Tensor:
    """In memory; of a GPU's in pinned memory, which torch uses again for the next checkpoint."""
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)


def _publish(folder: str, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts a checkpoint into `folder`, unless that step or a later one is there.

    Then older tensors are removed. Those of the checkpoint that it replaces stay, for readers who are between its JSON
    and its tensors. Workers whose driver is gone may still run beside those that a new one has started: neither takes
    the other back, nor removes what the other is about to publish.
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
    """The description of the checkpoint in `folder`.

    Raises:
        RequestError: there is none, none that this user may read, or a newer version of this package made it.
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
    """The trained projections of a checkpoint, on the CPU."""
    with _loading(folder, checkpoint) as tensors:
        heads = Heads(checkpoint.spec, checkpoint.vision.dim, checkpoint.language.dim)
        heads.load_state_dict(_below(tensors, _HEADS))
    return heads


def restore(
    folder: str, checkpoint: Checkpoint, heads: Heads, optimizer: Optimizer, average: Heads | None = None
) -> None:
    """Puts `heads`, `optimizer` and `average` where they were when the checkpoint was saved."""
    with _loading(folder, checkpoint) as tensors:
        heads.load_state_dict(_below(tensors, _HEADS))
        optimizer.load_state(_below(tensors, _OPTIMIZER))
        if average is not None:
            average.load_state_dict(_below(tensors, _AVERAGE))


@contextmanager
def _loading(folder: str, checkpoint: Checkpoint) -> Iterator[dict[str, torch.Tensor]]:
    """A checkpoint's tensors, verified; whatever is wrong with them is said of their file."""
    path = storage.join(folder, checkpoint.tensors)
    try:
        data = storage.read_bytes(path)
        if checkpoint.tensors_sha256 not in (None, storage.sha256(data)):
            raise RuntimeError("its SHA-256 is not that of the checkpoint")
        tensors = load(data)
        for name, value in tensors.items():
            # A square that an optimizer keeps may overflow, and a training that has one goes on.
            if not name.startswith(_OPTIMIZER) and not value.isfinite().all():
                raise RuntimeError(f"{name} is not finite")
        yield tensors
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{path} is damaged or missing ({reason}): delete {folder} and train again") from None


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
