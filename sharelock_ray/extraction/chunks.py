"""Chunks, the unit of extraction: consecutive samples of a shard.

Chunks are cut by position, so a chunk that is encoded again after a kill contains the same samples.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Protocol

import numpy as np
from PIL import Image

from sharelock_ray.encoders.images import Preprocessing, decode_image
from sharelock_ray.errors import RunError, is_resource_fault
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.sources.sample import Reject, Sample, Shard, Source, change


class _Encoder(Protocol):
    revision: str | None

    @property
    def device(self) -> str: ...


class _Vision(_Encoder, Protocol):
    def encode_each(self, pixels: np.ndarray) -> "_Encoded": ...


class _Language(_Encoder, Protocol):
    weights_format: str | None

    def encode_each(self, texts: Sequence[str]) -> "_Encoded": ...


class _Encoded(Protocol):
    embeddings: list[np.ndarray]
    too_large: list[int]
    unknown: dict[int, str]
    seconds: float
    batch_reductions: int
    tokens: int
    truncated: int


@dataclass(frozen=True)
class Pixels:
    """Decoded images of a chunk: (M, S, S, 3) uint8 `images` of the samples at `rows`."""

    rows: list[int]
    images: np.ndarray
    rejects: list[Reject]


@dataclass(frozen=True)
class Chunk:
    """Chunk number `index` of a shard; `rejects` are the samples that could not be read."""

    part: int
    index: int
    last: bool
    source: str
    samples: list[Sample]
    rejects: list[Reject]
    bytes: int = 0
    """Size of the image files and captions."""
    pixels: dict[Preprocessing, Pixels] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of inputs, including rejects."""
        return len(self.samples) + len(self.rejects)


def cut(source: Source, shard: Shard, chunk_size: int) -> Iterator[Chunk]:
    """Yields the chunks of a shard in order; an empty shard is one empty chunk.

    Raises:
        RunError: the shard changed since it was listed.
    """
    if problem := change(source, shard):
        raise RunError(problem)
    items = source.read(shard)
    # The next item tells whether a chunk is the last.
    following = list(islice(items, 1))
    for index in count():
        now = [*following, *islice(items, chunk_size - len(following))]
        following = list(islice(items, 1))
        samples = [item for item in now if isinstance(item, Sample)]
        rejects = [item for item in now if isinstance(item, Reject)]
        size = sum(len(sample.image or b"") + sum(map(len, sample.captions)) for sample in samples)
        yield Chunk(shard.index, index, not following, shard.uri, samples, rejects, size)
        if not following:
            return


def decode(chunk: Chunk, preprocessings: Collection[Preprocessing]) -> Chunk:
    """Decodes the images of a chunk for each preprocessing, and drops the encoded files.

    Raises:
        RunError: the machine lacks resources for decoding, such as memory.
    """
    found: dict[Preprocessing, _Decoded] = {preprocessing: _Decoded() for preprocessing in preprocessings}
    for row, sample in enumerate(chunk.samples):
        decoded: dict[tuple[int, int], Image.Image] = {}
        for preprocessing, images in found.items():
            if sample.image is None:
                images.rejects.append(_missing("image", sample))
                continue
            try:
                images.images.append(decode_image(sample.image, preprocessing, decoded))
                images.rows.append(row)
            # Decoders raise undocumented errors for hostile bytes; each becomes a reject.
            except Exception as error:
                if is_resource_fault(error):
                    what = f"{type(error).__name__}: {error}".removesuffix(": ")
                    raise RunError(f"decoding {sample.key} failed for lack of resources ({what}): run again") from error
                images.rejects.append(Reject.of(sample.key, "decode", error))
    pixels = {preprocessing: images.pixels(preprocessing.image_size) for preprocessing, images in found.items()}
    return replace(chunk, pixels=pixels, samples=[replace(sample, image=None) for sample in chunk.samples])


@dataclass(frozen=True)
class _Decoded:
    """Images decoded so far."""

    rows: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def pixels(self, size: int) -> Pixels:
        images = np.stack(self.images) if self.images else np.empty((0, size, size, 3), np.uint8)
        return Pixels(self.rows, images, self.rejects)


def encode_vision(encoder: _Vision, chunk: Chunk, preprocessing: Preprocessing) -> list[EncodedChunk]:
    """Rows and rejects of a decoded chunk for each vision encoder that shares the forward pass."""
    pixels = chunk.pixels[preprocessing]
    samples = [chunk.samples[row] for row in pixels.rows]
    encoded = encoder.encode_each(pixels.images)
    unfit = [_too_large(samples[row].key, "the image") for row in encoded.too_large]
    return _chunks(
        encoder,
        encoded,
        columns={"key": [s.key for s in samples], "label": [s.label for s in samples]},
        rejects=[*chunk.rejects, *pixels.rejects],
        unfit=unfit,
    )


def encode_language(encoder: _Language, chunk: Chunk) -> list[EncodedChunk]:
    """Rows and rejects of a chunk for each language encoder that shares the forward pass.

    Each caption is a row. If one caption of a sample cannot be encoded, the whole sample is one reject, so that each
    key is in exactly one place.
    """
    without = [_missing("caption", sample) for sample in chunk.samples if not sample.captions]
    captions = [(s.key, i, text) for s in chunk.samples for i, text in enumerate(s.captions)]
    encoded = encoder.encode_each([text for _, _, text in captions])
    unfit: dict[str, Reject] = {}
    for row in sorted({*encoded.too_large, *encoded.unknown}):
        key, i, _ = captions[row]
        token = encoded.unknown.get(row)
        unfit.setdefault(key, _unknown(key, i, token) if token is not None else _too_large(key, f"caption {i}"))
    return _chunks(
        encoder,
        encoded,
        columns={
            "key": [key for key, _, _ in captions],
            "caption_id": [i for _, i, _ in captions],
            "text": [text for _, _, text in captions],
        },
        rejects=[*chunk.rejects, *without],
        unfit=list(unfit.values()),
        weights_format=encoder.weights_format,
    )


def _chunks(
    encoder: _Encoder,
    encoded: _Encoded,
    *,
    columns: dict[str, list[object]],
    rejects: list[Reject],
    unfit: list[Reject],
    weights_format: str | None = None,
) -> list[EncodedChunk]:
    """One chunk per output of `encoded`, without the `unfit` samples; the outputs share the seconds equally."""
    lost = {reject.key for reject in unfit}
    rows = [row for row, key in enumerate(columns["key"]) if key not in lost]
    return [
        EncodedChunk(
            columns={name: [values[row] for row in rows] for name, values in columns.items()},
            embeddings=embeddings[rows],
            rejects=[*rejects, *unfit],
            seconds=encoded.seconds / len(encoded.embeddings),
            tokens=encoded.tokens,
            truncated=encoded.truncated,
            batch_reductions=encoded.batch_reductions,
            device=encoder.device,
            revision=encoder.revision,
            weights_format=weights_format,
        )
        for embeddings in encoded.embeddings
    ]


def _too_large(key: str, what: str) -> Reject:
    return Reject(key, "encode", "OutOfMemory", f"{what} does not fit into the device's memory even alone")


def _unknown(key: str, caption: int, token: str) -> Reject:
    message = f"caption {caption} has the token {token!r}, for which the model has no embedding"
    return Reject(key, "encode", "UnknownToken", message)


def _missing(what: str, sample: Sample) -> Reject:
    among = f" among {', '.join(sample.members)}" if sample.members else ""
    return Reject(sample.key, "read", f"Missing{what.capitalize()}", f"the sample has no {what}{among}")
