"""`manifest.json`: describes a feature set and how it was made, and proves that it is complete. Written last."""

from collections.abc import Iterable, Sequence, Set
from typing import Any

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError
from sharelock_ray.features.schema import part_name
from sharelock_ray.sources.sample import Shard

MANIFEST = "manifest.json"


class Input(Config):
    """A shard as listed when its part was made."""

    name: str
    uri: str
    bytes: int
    version: str = ""
    """Size and ETag, or modification time, of its file. Empty in older sets."""


class Part(Config):
    """A committed part: its Parquet file, and the file of its rejects if it has any."""

    index: int
    sha256: str
    rows: int
    bytes: int
    rejects: int
    rejects_sha256: str | None
    recovered: int = 0
    """Only in older sets, where retries added parts: the number of rejects of other parts that its rows replace."""
    retried: bool = False
    """Whether `sharelock rejects retry` has replaced the part that was extracted first."""
    keys: int
    """Distinct keys among the rows; a key of a language set has a row for each caption."""
    keys_sha256: str
    min: float | None
    max: float | None
    encoder_seconds: float
    joules: float | None = None
    """Energy of the GPU during these seconds, by its own counter, which includes other processes on the GPU.

    An actor with a fraction of a GPU takes that fraction of it. None on devices without a counter.
    """
    tokens: int
    truncated: int
    batch_reductions: int = 0
    devices: tuple[str, ...]
    revisions: tuple[str, ...]
    weights_formats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its file, and of the file of its rejects."""
        if not self.retried:
            return part_name(self.index)
        return part_name(self.index, storage.sha256(f"{self.sha256} {self.rejects_sha256}".encode())[:16])

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of its files within the set."""
        return (self.name, f"rejects/{self.name}") if self.rejects else (self.name,)


class Origin(Config):
    """Origin of a feature set. `encoder` is the resolved spec, with everything that changes embeddings."""

    dataset: str
    split: str
    encoder: dict[str, object]
    weights_sha256: str | None
    software: dict[str, str]


class Prediction(Config):
    """Prediction of `sharelock plan`, to compare with the manifest's fields of the same names."""

    rows: int
    bytes: int
    """Compare with the sum of the parts' `bytes`."""
    wall_seconds: float
    encoder_seconds: float
    gpu_hours: float


class Manifest(Origin, Document):
    """See the design, section 3."""

    schema_version = 3

    modality: str
    dim: int
    dtype: str
    rows: int
    rejects: int
    keys: int
    keys_sha256: str
    min: float | None
    max: float | None
    non_finite: int = 0
    tokens: int
    truncated: int
    batch_reductions: int = 0
    inputs: tuple[Input, ...]
    parts: tuple[Part, ...]
    devices: tuple[str, ...]
    revisions: tuple[str, ...]
    """Commits of a model from the hub; several if it changed between runs and the recipe pins none."""
    weights_formats: tuple[str, ...] = ()
    """Architecture and quantisation of a model in a GGUF file; empty for other models."""
    wall_seconds: float
    encoder_seconds: float
    joules: float | None = None
    """Of all parts; None if a part has none."""
    gpu_hours: float
    planned: Prediction | None = None
    created: str

    @property
    def digest(self) -> str:
        """Hash of the content; equal for equal parts."""
        return storage.sha256("".join(part.sha256 for part in self.parts).encode())

    def other_inputs(self, listed: Sequence[Shard], may_change: Set[str]) -> dict[str, str]:
        """Inputs that differ from those of the set, by sorted name: "new", "gone" or "of another size".

        The size of the inputs in `may_change` is ignored.
        """
        made = {each.name: each.bytes for each in self.inputs}
        now = {shard.name: shard.bytes for shard in listed}
        found = dict.fromkeys(now.keys() - made.keys(), "new") | dict.fromkeys(made.keys() - now.keys(), "gone")
        resized = {name for name in made.keys() & now.keys() - may_change if made[name] != now[name]}
        return dict(sorted((found | dict.fromkeys(resized, "of another size")).items()))


def inputs_with_rejects(manifests: Iterable[Manifest]) -> set[str]:
    """Names of the inputs with rejects, now or before a retry, in a set of a split. Repairs may change these inputs."""
    return {each.inputs[p.index].name for each in manifests for p in each.parts if p.rejects or p.retried}


def totals(parts: Sequence[Part]) -> dict[str, Any]:
    """The manifest's fields that are derived from its parts."""
    lows = [part.min for part in parts if part.min is not None]
    highs = [part.max for part in parts if part.max is not None]
    return {
        "parts": tuple(parts),
        "rows": sum(part.rows for part in parts),
        "rejects": sum(part.rejects - part.recovered for part in parts),
        "keys": sum(part.keys for part in parts),
        "keys_sha256": keys_digest([part.keys_sha256 for part in parts]),
        "min": min(lows, default=None),
        "max": max(highs, default=None),
        "tokens": sum(part.tokens for part in parts),
        "truncated": sum(part.truncated for part in parts),
        "batch_reductions": sum(part.batch_reductions for part in parts),
        "devices": tuple(sorted({device for part in parts for device in part.devices})),
        "revisions": tuple(sorted({revision for part in parts for revision in part.revisions})),
        "weights_formats": tuple(sorted({held for part in parts for held in part.weights_formats})),
        "encoder_seconds": round(sum(part.encoder_seconds for part in parts), 2),
        "joules": total_joules(part.joules for part in parts),
    }


def total_joules(values: Iterable[float | None]) -> float | None:
    """The sum, to hundredths; None if a value is missing."""
    known = list(values)
    missing = any(value is None for value in known)
    return None if missing else round(sum(value for value in known if value is not None), 2)


def keys_digest(keys: Sequence[str]) -> str:
    """SHA-256 of the keys, in order."""
    return storage.sha256("\n".join(keys).encode())


def is_complete(uri: str) -> bool:
    return storage.exists(storage.join(uri, MANIFEST))


def read_manifest(uri: str) -> Manifest:
    """The manifest of the feature set at `uri`.

    Raises:
        RequestError: the set does not exist, is incomplete, or was made by a newer version of this package.
        RunError: the manifest is damaged.
    """
    path = storage.join(uri, MANIFEST)
    try:
        return read_document(Manifest, path, "delete it and run extract again")
    except FileNotFoundError:
        state = "is not complete (no manifest.json)" if storage.exists(uri) else "does not exist"
        raise RequestError(f"the feature set {uri} {state}: run `sharelock extract` with its recipe") from None
