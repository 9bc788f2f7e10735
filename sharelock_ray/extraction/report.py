"""An actor's report to the driver about one chunk."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkReport:
    """Result of one chunk; `encoders` have staged it, in this or an earlier attempt at the same task."""

    part: int
    index: int
    last: bool
    encoders: tuple[int, ...]
    samples: int
    bytes: int
    """Size of the images and captions."""
    rejects: int
    """Rejects of all encoders."""
    tokens: int
    """Tokens of all forward passes."""
    read_seconds: float
    """Seconds of reading and decoding."""
    encode_seconds: float
    write_seconds: float
    worker: str
    """The process that encoded it, as host:pid."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        return {"read": self.read_seconds, "encode": self.encode_seconds, "write": self.write_seconds}
