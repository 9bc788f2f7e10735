"""How far a feature set has come, for those who watch it: read from storage alone, so from anywhere."""

import time
from dataclasses import dataclass

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import SharelockError
from sharelock_ray.features.manifest import Manifest, is_complete, read_manifest
from sharelock_ray.features.writer import Begun


class Live(Document):
    """`staging/progress.json`: what the driver last told of its run.

    Samples, rejects, share and wall seconds cover earlier runs too.

    A note for people, and no part of the proof: what is committed is told by the staged and sealed parts.
    """

    samples: int = 0
    rejects: int = 0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    seconds: dict[str, float] = Field(default_factory=dict)
    """Of all workers together, by stage; empty until the first chunk is staged."""
    encoders_idle: float = 0.0
    """Share of the time in which actors had no encoder at work."""
    share: float = 0.0
    """Of the input's bytes."""
    seconds_left: float | None = None
    wall_seconds: float = 0.0
    updated: float = 0.0
    """Unix time."""

    @property
    def age(self) -> float:
        """Seconds since the driver was last heard of."""
        return max(0.0, time.time() - self.updated)

    @property
    def work(self) -> str:
        """Tokens a second, where the workers' time goes, and how idle encoders are, in words."""
        total = sum(self.seconds.values())
        tokens = f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        stages = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self.seconds.items()) if total else ""
        return "; ".join(filter(None, (tokens, stages, f"encoders idle {self.encoders_idle:.0%}")))


@dataclass(frozen=True)
class SetState:
    """`manifest` of a complete set; of one that is begun, how many of its parts are sealed."""

    uri: str
    manifest: Manifest | None
    parts: int = 0
    sealed: int = 0
    live: Live | None = None


def state_of(uri: str) -> SetState:
    """The state of the feature set at `uri`, which need not be begun."""
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
    """What the driver last told; None where it told nothing, is of another version, or is damaged."""
    try:
        return read_document(Live, _path(uri))
    except (FileNotFoundError, SharelockError):
        return None


def write_live(uri: str, live: Live) -> None:
    storage.write_json(_path(uri), live.content())


def _path(uri: str) -> str:
    return storage.join(uri, "staging", "progress.json")
