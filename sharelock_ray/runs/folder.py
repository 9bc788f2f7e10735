"""The folder of a training run: its request, its progress and its result. Does not import torch."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.features.manifest import Manifest

CHECKPOINT = "checkpoint.json"
OFFICIAL = ".ckpt"
"""Ending of the checkpoints of the official ShareLock code, which are single files."""
_DATA_PLACEMENT = "feeding.json"
_FAULT = "fault.json"


def model_file(place: str) -> str:
    """The file whose content identifies a trained model: an official checkpoint itself, or that of a folder."""
    return place if place.endswith(OFFICIAL) else storage.join(place, CHECKPOINT)


class TrainingRequest(Document):
    """`training-request.json`: settings and feature sets of a run."""

    schema_version = 2

    alignment: AlignmentSpec = AlignmentSpec()
    features: dict[str, str]
    """Digest of the feature set of each modality."""
    pairing: dict[str, str] = Field(default_factory=dict)
    """What identifies a `Pairing`, such as the hash of a split of concepts."""


class Fault(Document):
    """`fault.json`: the error that ended a run."""

    is_request: bool
    """Whether it is a RequestError, and not a RunError."""
    message: str


class TrainingResult(Document):
    """`training.json`: the result of a finished training. Losses are in nats."""

    schema_version = 2

    steps: int
    stopped_early: bool
    first_loss: float
    last_loss: float
    best_validation_loss: float
    """Validation loss at `best_step`, which is selected by the monitored metric."""
    best_step: int
    training_pairs: int
    validation_pairs: int
    lost: dict[str, int]
    """Number of keys that only this feature set has, by modality."""
    left_out: int = 0
    """Number of pairs that a split of concepts leaves out."""
    parameters: int
    """Number of trainable parameters."""
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, on any filesystem."""

    uri: str

    @property
    def best(self) -> str:
        return storage.join(self.uri, "best")

    @property
    def last(self) -> str:
        return storage.join(self.uri, "last")

    @property
    def tensorboard(self) -> str:
        return storage.join(self.uri, "tensorboard")

    @property
    def non_finite(self) -> str:
        """Report of a non-finite loss: step, keys of the batch, last good checkpoint."""
        return storage.join(self.uri, "non-finite.json")

    @property
    def _request(self) -> str:
        return storage.join(self.uri, "training-request.json")

    def begun_age(self) -> float | None:
        """Seconds since the first start of the run; None if it was never started."""
        return storage.age(self._request) if storage.exists(self._request) else None

    def begin(
        self, spec: AlignmentSpec, vision: Manifest, language: Manifest, pairing: Mapping[str, str] | None = None
    ) -> None:
        """Stores the request of the run, or compares it with the stored one; removes unfinished writes.

        Args:
            pairing: `Pairing.identity`.

        Raises:
            RequestError: the folder holds a training with other settings or features; the message names the difference.
        """
        features = {"vision": vision.digest, "language": language.digest}
        asked = TrainingRequest(alignment=spec, features=features, pairing=dict(pairing or {}))
        if not storage.exists(self._request):
            storage.create_json(self._request, asked.content())
        # If several drivers start at the same time, the request of the first one counts.
        known = read_document(TrainingRequest, self._request)
        changed = _differences(known.content(), asked.content())
        if changed:
            raise RequestError(
                f"{self.uri} holds a training with other settings ({', '.join(changed)}): "
                f"choose another `output`, or delete that folder to train from the start"
            )
        for folder in (self.uri, self.best, self.last):
            storage.remove_unfinished(folder)

    def data_placement(self) -> str | None:
        """The data placement of the running training with its reason; None if it is not known yet."""
        path = storage.join(self.uri, _DATA_PLACEMENT)
        return str(storage.read_json(path)) if storage.exists(path) else None

    def write_data_placement(self, text: str | None) -> None:
        """Stores the result of `data_placement`; None removes it."""
        path = storage.join(self.uri, _DATA_PLACEMENT)
        storage.remove(path) if text is None else storage.write_json(path, text)

    def fault(self) -> SharelockError | None:
        """The error of a worker that a retry would not fix; None without one."""
        path = storage.join(self.uri, _FAULT)
        if not storage.exists(path):
            return None
        known = read_document(Fault, path)
        return (RequestError if known.is_request else RunError)(known.message)

    def write_fault(self, fault: SharelockError | None) -> None:
        """Stores the result of `fault`; None removes it."""
        path = storage.join(self.uri, _FAULT)
        if fault is None:
            storage.remove(path)
        else:
            known = Fault(is_request=isinstance(fault, RequestError), message=str(fault))
            storage.write_json(path, known.content())

    def result(self) -> TrainingResult | None:
        """The result of the training; None if it is not finished."""
        path = storage.join(self.uri, "training.json")
        return read_document(TrainingResult, path) if storage.exists(path) else None

    def finish(self, result: TrainingResult) -> None:
        """Writes `training.json`, which marks the training as finished."""
        storage.write_json(storage.join(self.uri, "training.json"), result.content())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` without damaged lines; empty if there is no file yet."""
        path = storage.join(self.uri, "metrics.jsonl")
        rows: list[dict[str, Any]] = []
        for line in storage.read_bytes(path).splitlines() if storage.exists(path) else []:
            # Metrics are for display only, so a damaged line must not end a training.
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def metrics_age(self) -> float:
        """Seconds since `metrics.jsonl` was last written."""
        return storage.age(storage.join(self.uri, "metrics.jsonl"))

    def steps_per_second(self) -> float:
        """Mean rate up to the last checkpoint; 0 without a readable checkpoint."""
        # Parsing the checkpoint as a document would import torch. The rate is for display only, so errors are ignored.
        with suppress(FileNotFoundError, RunError, LookupError, TypeError):
            position = storage.read_json(storage.join(self.last, CHECKPOINT))["position"]
            return float(position["step"] / max(position["seconds"], 1e-9))
        return 0.0

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write_bytes(storage.join(self.uri, "metrics.jsonl"), lines.encode())


def newest(rows: list[dict[str, Any]]) -> str:
    """The last values of loss, validation loss and recall in the rows of `metrics.jsonl`, as text."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= row
    shown = {"loss": "loss", "validation_loss": "validation loss", "recall_at_1": "recall@1"}
    return ", ".join(f"{label} {values[name]:.3f}" for name, label in shown.items() if name in values)


def pairs_per_second(rows: list[dict[str, Any]], steps_per_second: float) -> str:
    """Training pairs per second as text, from the rows of `metrics.jsonl`; empty if unknown."""
    pairs_per_step = next((row["pairs"] / row["step"] for row in rows if "pairs" in row), 0.0)
    return f"{pairs_per_step * steps_per_second:,.0f} pairs/s" if pairs_per_step and steps_per_second > 0 else ""


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One text per field that differs, with its path and both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    if old == new:
        return []
    return [f"{path} differs"] if path.startswith("features") else [f"{path}: {old} there, {new} now"]
