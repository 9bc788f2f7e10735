"""What an extraction will take, from a probe of some of its samples on this machine, before it is paid for."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.encoders.chunks import Chunk, decode
from sharelock_ray.encoders.spec import EncoderSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.options import ExtractionOptions
from sharelock_ray.features.manifest import Prediction
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.sample import Reject, Sample, Shard, Source

if TYPE_CHECKING:
    from sharelock_ray.encoders.group import EncoderGroup

PROBE = 200
"""Samples (issue 3, 8)."""
_SHARDS = 4


class EncoderPlan(Config):
    """One feature set to come, and what it came to where it is there already."""

    encoder: str
    """Its folder name."""
    rows: int
    bytes: int
    """Of the stored embeddings and columns."""
    seconds_per_sample: float
    """Of the encoder, on this machine's device."""


class SplitPlan(Config):
    """One split through all its encoders."""

    split: str
    samples: int
    input_bytes: int
    read_seconds_per_sample: float
    """Reading and decoding, on one core."""
    encoders: tuple[EncoderPlan, ...]
    hours: float
    gpu_hours: float
    cores_to_read: float
    """Cores that keep the actors fed."""
    cost: float | None
    """GPU-hours at the given price, or actor-hours where no GPU is asked for."""

    @property
    def bytes(self) -> int:
        return sum(encoder.bytes for encoder in self.encoders)


class Plan(Config):
    """`plan.json`."""

    device: str
    probed: int
    price: float | None
    splits: tuple[SplitPlan, ...]


def estimate(recipe: Recipe, samples: int = PROBE, price: float | None = None) -> Plan:
    """Probes every split, and keeps the result beside the run, where manifests will quote it.

    Args:
        samples: probed of each split, from shards spread over it.
        price: of a GPU-hour, or of an actor-hour where the recipe asks for no GPU; in any currency.

    Raises:
        RequestError: the recipe asks for a GPU, and this machine has none; or there is no input.
    """
    options = recipe.operations.extraction
    encoders = [encoder.resolved() for encoder in recipe.encoders]
    groups = _load(encoders, options)
    splits = tuple(
        _split(split, source, encoders, groups, options, samples, price) for split, source in recipe.splits.items()
    )
    found = Plan(device=groups[0].encoder.device, probed=samples, price=price, splits=splits)
    storage.write_json(_path(recipe), found.model_dump(mode="json"))
    return found


def predictions(recipe: Recipe, split: str) -> dict[str, Prediction]:
    """What the recipe's plan foresees for the feature sets of a split, by folder name; empty where there is no plan,
    or one that another version made."""
    try:
        found = Plan.model_validate(storage.read_json(_path(recipe)))
    except FileNotFoundError:
        return {}
    except ValueError:
        say(f"{_path(recipe)} cannot be read, and is not compared with what comes: run `sharelock plan` again for that")
        return {}
    return {
        encoder.encoder: Prediction(
            rows=encoder.rows,
            bytes=encoder.bytes,
            wall_seconds=round(each.hours * 3600, 2),
            encoder_seconds=round(encoder.seconds_per_sample * each.samples, 2),
        )
        for each in found.splits
        if each.split == split
        for encoder in each.encoders
    }


def _path(recipe: Recipe) -> str:
    return storage.join(recipe.output, "plan.json")


def _load(encoders: Sequence[EncoderSpec], options: ExtractionOptions) -> "list[EncoderGroup]":
    import torch

    from sharelock_ray.encoders.group import load_encoders

    if options.num_gpus and not torch.cuda.is_available():
        raise RequestError(
            "the recipe's actors want a GPU, and this machine has none: make the plan where one is, "
            "or set operations.extraction.num_gpus=0"
        )
    say(f"plan: loads {', '.join(encoder.name for encoder in encoders)}")
    return load_encoders(
        encoders,
        "cuda" if options.num_gpus else "cpu",
        image_batch_size=options.image_batch_size,
        token_budget=options.token_budget,
        compiled=options.compile,
        channels_last=options.channels_last,
    )


def _split(
    split: str,
    source: Source,
    encoders: Sequence[EncoderSpec],
    groups: "Sequence[EncoderGroup]",
    options: ExtractionOptions,
    samples: int,
    price: float | None,
) -> SplitPlan:
    shards = source.shards()
    probe, inputs, seen_bytes, read_seconds = _probe(source, shards, samples)
    if not probe.samples:
        raise RequestError(f"the first shards of {split} hold no sample that can be read: see `sharelock rejects`")
    total_bytes = sum(shard.bytes for shard in shards)
    total = round(inputs * total_bytes / seen_bytes)
    started = time.perf_counter()
    decoded = decode(probe, {spec.preprocessing for spec in encoders if isinstance(spec, VisionSpec)})
    read_each = read_seconds / inputs + (time.perf_counter() - started) / probe.size
    for group in groups:
        group.encode(decoded)  # The first pass also pays for what is done once.
    encoded = {i: chunk for group in groups for i, chunk in zip(group.members, group.encode(decoded), strict=True)}
    plans = tuple(_encoder(spec, encoded[i], decoded.size, total) for i, spec in enumerate(encoders))
    encode_each = sum(each.seconds_per_sample for each in plans)
    # An actor without a GPU reads for itself; beside one with a GPU, CPUs read ahead.
    busy = total * (encode_each if options.num_gpus else encode_each + read_each)
    actors = min(options.max_actors, len(shards))
    unit_hours = busy / 3600
    return SplitPlan(
        split=split,
        samples=total,
        input_bytes=total_bytes,
        read_seconds_per_sample=read_each,
        encoders=plans,
        hours=unit_hours / actors,
        gpu_hours=unit_hours * options.num_gpus,
        cores_to_read=actors * read_each / encode_each if options.num_gpus else 0.0,
        cost=None if price is None else price * unit_hours * (options.num_gpus or 1),
    )


def _probe(source: Source, shards: Sequence[Shard], samples: int) -> tuple[Chunk, int, int, float]:
    """Samples from shards spread over the split, as one chunk; then all inputs of those shards, their bytes, and the
    seconds that reading them took."""
    chosen = [shards[i * len(shards) // _SHARDS] for i in range(min(_SHARDS, len(shards)))]
    chosen = [shard for shard in dict.fromkeys(chosen) if shard.bytes] or [shards[0]]
    quota = math.ceil(samples / len(chosen))
    taken: list[Sample | Reject] = []
    inputs = 0
    started = time.perf_counter()
    for shard in chosen:
        items: Iterator[Sample | Reject] = iter(source.read(shard))
        first = list(islice(items, quota))
        taken += first
        inputs += len(first) + sum(1 for _ in items)
    seconds = time.perf_counter() - started
    found = [item for item in taken if isinstance(item, Sample)]
    chunk = Chunk(0, 0, True, "probe", found, [item for item in taken if isinstance(item, Reject)])
    return chunk, max(1, inputs), max(1, sum(shard.bytes for shard in chosen)), seconds


def _encoder(spec: EncoderSpec, encoded: EncodedChunk, probed: int, total: int) -> EncoderPlan:
    rows = len(encoded.embeddings)
    width = encoded.embeddings.shape[1] * (2 if spec.stored_dtype == "float16" else 4)
    texts = sum(len(str(text).encode()) for name in ("key", "text") for text in encoded.columns.get(name, []))
    share = total / probed
    return EncoderPlan(
        encoder=spec.folder(),
        rows=round(rows * share),
        bytes=round((rows * width + texts) * share),
        seconds_per_sample=encoded.seconds / probed,
    )
