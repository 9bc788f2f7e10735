"""Progress of a feature set, read from storage only, so that any machine can show it."""

import time
from dataclasses import dataclass

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import SharelockError
from sharelock_ray.features.manifest import Manifest, is_complete, read_manifest
from sharelock_ray.features.writer import Begun


class Live(Document):
    """`staging/progress.json`: the driver's last progress record.

    Samples, rejects, share and wall seconds include earlier runs. Informational only: the staged and sealed parts
    determine what is committed.
    """

    samples: int = 0
    rejects: int = 0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    seconds: dict[str, float] = Field(default_factory=dict)
    """Sum over workers, by stage; empty until the first chunk is staged."""
    encoders_idle: float = 0.0
    """Fraction of the actors' time without a busy encoder."""
    share: float = 0.0
    """Fraction of the input's bytes that is encoded."""
    seconds_left: float | None = None
    wall_seconds: float = 0.0
    updated: float = 0.0
    """Unix time."""

    @property
    def age(self) -> float:
        """Seconds since the last update."""
        return max(0.0, time.time() - self.updated)

    @property
    def work(self) -> str:
        """Tokens per second, shares of the workers' time, and idle time of the encoders, as text."""
        total = sum(self.seconds.values())
        tokens = f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        stages = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self.seconds.items()) if total else ""
        return "; ".join(filter(None, (tokens, stages, f"encoders idle {self.encoders_idle:.0%}")))


@dataclass(frozen=True)
class SetState:
    """State of a feature set: `manifest` if it is complete, else the number of sealed parts."""

    uri: str
    manifest: Manifest | None
    parts: int = 0
    sealed: int = 0
    live: Live | None = None


def state_of(uri: str) -> SetState:
    """The state of the feature set at `uri`, which need not exist."""
    if is_complete(uri):
        manifest = read_manifest(uri)
        return SetState(uri, manifest, len(manifest.parts), len(manifest.parts))
    staging = storage.join(uri, "staging")
    try:
        begun = read_document(Begun, storage.join(staging, "begun.json"))
    except FileNotFoundError:
        return SetState(uri, None)
    sealed = sum(name.removesuffix(".json").isdigit() and name.endswith(".json") for name in storage.names(staging))
    return SetState(uri, None, len(begun.listing), sealed, read_live(uri))


def read_live(uri: str) -> Live | None:
    """The last progress record; None if it is missing, damaged or of a newer version."""
    try:
        return read_document(Live, _path(uri))
    except (FileNotFoundError, SharelockError):
        return None


def write_live(uri: str, live: Live) -> None:
    storage.write_json(_path(uri), live.content())


def _path(uri: str) -> str:
    return storage.join(uri, "staging", "progress.json")
