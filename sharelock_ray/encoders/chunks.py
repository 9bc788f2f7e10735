"""The unit of extraction: a fixed run of a shard's samples, on its way from the reader to the encoders.

Chunks are cut from the input by position, so a chunk that is encoded again after a kill is the same batch again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Protocol

import numpy as np

from sharelock_ray.encoders.images import Preprocessing, decode_image
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.sources.sample import Reject, Sample, Shard, Source


class _Encoder(Protocol):
    revision: str | None

    @property
    def device(self) -> str: ...


class _Vision(_Encoder, Protocol):
    def encode_each(self, pixels: np.ndarray) -> "_Encoded": ...


class _Language(_Encoder, Protocol):
    def encode_each(self, texts: Sequence[str]) -> "_Encoded": ...


class _Encoded(Protocol):
    embeddings: list[np.ndarray]
    too_large: list[int]
    seconds: float
    batch_reductions: int
    tokens: int
    truncated: int


@dataclass(frozen=True)
class Pixels:
    """Decoded images of a chunk: `images` is (M, S, S, 3) uint8, of the samples at `rows`."""

    rows: list[int]
    images: np.ndarray
    rejects: list[Reject]


@dataclass(frozen=True)
class Chunk:
    """Samples `index * size …` of a shard; `rejects` are those that could not even be read."""

    part: int
    index: int
    last: bool
    source: str
    samples: list[Sample]
    rejects: list[Reject]
    bytes: int = 0
    """Of the image files and captions."""
    pixels: dict[Preprocessing, Pixels] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Inputs accounted for, read or not."""
        return len(self.samples) + len(self.rejects)


def cut(source: Source, shard: Shard, chunk_size: int) -> Iterator[Chunk]:
    """The chunks of a shard, in order; an empty shard is one empty chunk."""
    items = source.read(shard)
    # One item ahead tells whether a chunk is the last.
    ahead = list(islice(items, 1))
    for index in count():
        now = [*ahead, *islice(items, chunk_size - len(ahead))]
        ahead = list(islice(items, 1))
        samples = [item for item in now if isinstance(item, Sample)]
        rejects = [item for item in now if isinstance(item, Reject)]
        size = sum(len(sample.image or b"") + sum(map(len, sample.captions)) for sample in samples)
        yield Chunk(shard.index, index, not ahead, shard.uri, samples, rejects, size)
        if not ahead:
            return


def decode(chunk: Chunk, preprocessings: Collection[Preprocessing]) -> Chunk:
    """The chunk with its images as pixels, once for each preprocessing, and without their files' bytes."""
    pixels = {preprocessing: _decode(chunk, preprocessing) for preprocessing in preprocessings}
    return replace(chunk, pixels=pixels, samples=[replace(sample, image=None) for sample in chunk.samples])


def _decode(chunk: Chunk, preprocessing: Preprocessing) -> Pixels:
    rows, images, rejects = [], [], []
    for row, sample in enumerate(chunk.samples):
        if sample.image is None:
            rejects.append(_missing("image", sample))
            continue
        try:
            images.append(decode_image(sample.image, preprocessing))
            rows.append(row)
        # A decoder fails on hostile bytes in more ways than it documents; each of them is that image's reject.
        except Exception as error:
            rejects.append(Reject.of(sample.key, "decode", error))
    size = preprocessing.image_size
    return Pixels(rows, np.stack(images) if images else np.empty((0, size, size, 3), np.uint8), rejects)


def encode_vision(encoder: _Vision, chunk: Chunk, preprocessing: Preprocessing) -> list[EncodedChunk]:
    """Rows and rejects of a decoded chunk, of each of the vision encoders that share the forward pass."""
    pixels = chunk.pixels[preprocessing]
    samples = [chunk.samples[row] for row in pixels.rows]
    encoded = encoder.encode_each(pixels.images)
    too_large = [_too_large(samples[row].key, "the image") for row in encoded.too_large]
    return _chunks(
        encoder,
        encoded,
        columns={"key": [s.key for s in samples], "label": [s.label for s in samples]},
        rejects=[*chunk.rejects, *pixels.rejects, *too_large],
    )


def encode_language(encoder: _Language, chunk: Chunk) -> list[EncodedChunk]:
    """Rows and rejects of a chunk, of each of the language encoders that share the forward pass.

    A row is a caption of a sample.
    """
    without = [_missing("caption", sample) for sample in chunk.samples if not sample.captions]
    captions = [(s.key, i, text) for s in chunk.samples for i, text in enumerate(s.captions)]
    encoded = encoder.encode_each([text for _, _, text in captions])
    too_large = [_too_large(captions[row][0], f"caption {captions[row][1]}") for row in encoded.too_large]
    return _chunks(
        encoder,
        encoded,
        columns={
            "key": [key for key, _, _ in captions],
            "caption_id": [i for _, i, _ in captions],
            "text": [text for _, _, text in captions],
        },
        rejects=[*chunk.rejects, *without, *too_large],
    )


def _chunks(
    encoder: _Encoder,
    encoded: _Encoded,
    *,
    columns: dict[str, list[object]],
    rejects: list[Reject],
) -> list[EncodedChunk]:
    """A chunk for each reading of `encoded`, without the rows that were too large; they share its seconds."""
    kept = np.ones(len(columns["key"]), bool)
    kept[encoded.too_large] = False
    rows = np.flatnonzero(kept).tolist()
    return [
        EncodedChunk(
            columns={name: [values[row] for row in rows] for name, values in columns.items()},
            embeddings=embeddings[kept],
            rejects=rejects,
            seconds=encoded.seconds / len(encoded.embeddings),
            tokens=encoded.tokens,
            truncated=encoded.truncated,
            batch_reductions=encoded.batch_reductions,
            device=encoder.device,
            revision=encoder.revision,
        )
        for embeddings in encoded.embeddings
    ]


def _too_large(key: str, what: str) -> Reject:
    return Reject(key, "encode", "OutOfMemory", f"{what} does not fit into the device's memory even alone")


def _missing(what: str, sample: Sample) -> Reject:
    among = f" among {', '.join(sample.members)}" if sample.members else ""
    return Reject(sample.key, "read", f"Missing{what.capitalize()}", f"the sample has no {what}{among}")
