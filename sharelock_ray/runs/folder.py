"""The folder of one training run, seen from outside: what it was asked, how far it is, how it ended. Needs no torch."""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sharelock_ray import storage
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.features.manifest import Manifest

CHECKPOINT = "checkpoint.json"
_DATA_PLACEMENT = "feeding.json"
_FAULT = "fault.json"


class TrainingRequest(Document):
    """`training-request.json`: what a run trains on."""

    alignment: AlignmentSpec = AlignmentSpec()
    features: dict[str, str]
    """Digest of the feature set, by modality."""


class Fault(Document):
    """`fault.json`: what ended a run."""

    is_request: bool
    """Whether the request was wrong, and not the run."""
    message: str


class TrainingResult(Document):
    """`training.json`: how a finished training ended. Losses are in nats, of the kind that the spec says."""

    steps: int
    stopped_early: bool
    first_loss: float
    last_loss: float
    best_validation_loss: float
    """At the best step, by what is monitored."""
    best_step: int
    training_pairs: int
    validation_pairs: int
    lost: dict[str, int]
    """Keys that only one of the two feature sets has."""
    parameters: int
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, on any filesystem."""

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
        """What a loss that was not finite came from."""
        return storage.join(self.uri, "non-finite.json")

    @property
    def _request(self) -> str:
        return storage.join(self.uri, "training-request.json")

    def begun_age(self) -> float | None:
        """Seconds since the run was first begun; None where it was not."""
        return storage.age(self._request) if storage.exists(self._request) else None

    def begin(self, spec: AlignmentSpec, vision: Manifest, language: Manifest) -> None:
        """Fixes what the run trains on, and removes what writes that were killed have left.

        Raises:
            RequestError: the folder holds a training that was begun otherwise; the message names the difference.
        """
        asked = TrainingRequest(alignment=spec, features={"vision": vision.digest, "language": language.digest})
        if not storage.exists(self._request):
            storage.create_json(self._request, asked.content())
        # Of several drivers that begin at once, the first has fixed it for all.
        known = read_document(TrainingRequest, self._request)
        changed = _differences(known.content(), asked.content())
        if changed:
            raise RequestError(
                f"{self.uri} holds a training with other settings ({', '.join(changed)}): "
                f"choose another `output`, or delete that folder to train anew"
            )
        for folder in (self.uri, self.best, self.last):
            storage.remove_unfinished(folder)

    def data_placement(self) -> str | None:
        """The data placement of the running training, and its reason; None if it is not known yet."""
        path = storage.join(self.uri, _DATA_PLACEMENT)
        return str(storage.read_json(path)) if storage.exists(path) else None

    def write_data_placement(self, text: str | None) -> None:
        """Stores the result of `data_placement`; None removes it."""
        path = storage.join(self.uri, _DATA_PLACEMENT)
        storage.remove(path) if text is None else storage.write_json(path, text)

    def fault(self) -> SharelockError | None:
        """What a worker found wrong that a new start would not mend; None where none did."""
        path = storage.join(self.uri, _FAULT)
        if not storage.exists(path):
            return None
        known = read_document(Fault, path)
        return (RequestError if known.is_request else RunError)(known.message)

    def say_fault(self, fault: SharelockError | None) -> None:
        """What `fault` gives from now on."""
        path = storage.join(self.uri, _FAULT)
        if fault is None:
            storage.remove(path)
        else:
            known = Fault(is_request=isinstance(fault, RequestError), message=str(fault))
            storage.write_json(path, known.content())

    def result(self) -> TrainingResult | None:
        """How training ended; None while it has not."""
        path = storage.join(self.uri, "training.json")
        return read_document(TrainingResult, path) if storage.exists(path) else None

    def finish(self, result: TrainingResult) -> None:
        """Writes `training.json`, the mark of a finished training."""
        storage.write_json(storage.join(self.uri, "training.json"), result.content())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, but for a damaged line; none where there is no such file yet."""
        path = storage.join(self.uri, "metrics.jsonl")
        rows: list[dict[str, Any]] = []
        for line in storage.read_bytes(path).splitlines() if storage.exists(path) else []:
            # They are for people to look at: no training, and none that wait for it, end for one of them.
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def metrics_age(self) -> float:
        """Seconds since `metrics.jsonl` was last written."""
        return storage.age(storage.join(self.uri, "metrics.jsonl"))

    def steps_per_second(self) -> float:
        """Of the training up to its last checkpoint; 0 before there is one that can be read."""
        # It is for people to look at, and the checkpoint is read whole only where torch is.
        with suppress(FileNotFoundError, RunError, LookupError, TypeError):
            position = storage.read_json(storage.join(self.last, CHECKPOINT))["position"]
            return float(position["step"] / max(position["seconds"], 1e-9))
        return 0.0

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write_bytes(storage.join(self.uri, "metrics.jsonl"), lines.encode())


def newest(rows: list[dict[str, Any]]) -> str:
    """The last values in `metrics.jsonl` of what is measured at steps and at validations, for a person."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= row
    shown = {"loss": "loss", "validation_loss": "validation loss", "recall_at_1": "recall@1"}
    return ", ".join(f"{label} {values[name]:.3f}" for name, label in shown.items() if name in values)


def pairs_per_second(rows: list[dict[str, Any]], steps_per_second: float) -> str:
    """The pairs of the steps in `metrics.jsonl`, at that pace, for a person; empty where either is not known."""
    pairs_per_step = next((row["pairs"] / row["step"] for row in rows if "pairs" in row), 0.0)
    return f"{pairs_per_step * steps_per_second:,.0f} pairs/s" if pairs_per_step and steps_per_second > 0 else ""


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`field: old -> new` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    if old == new:
        return []
    return [f"{path} differs"] if path.startswith("features") else [f"{path}: {old} there, {new} now"]
