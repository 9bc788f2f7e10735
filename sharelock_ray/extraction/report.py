"""What an actor tells the driver of a chunk."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkReport:
    """What became of one chunk: `encoders` have staged it, or an earlier attempt at the same task had."""

    part: int
    index: int
    last: bool
    encoders: tuple[int, ...]
    samples: int
    bytes: int
    """Of the images and captions."""
    rejects: int
    """Of all encoders together."""
    tokens: int
    """Of all forward passes together."""
    read_seconds: float
    """Reading and decoding."""
    encode_seconds: float
    write_seconds: float
    worker: str
    """The process that encoded it, as host:pid."""

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return {"read": self.read_seconds, "encode": self.encode_seconds, "write": self.write_seconds}
