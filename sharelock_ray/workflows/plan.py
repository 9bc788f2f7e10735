"""What an extraction will take, from a probe of some of its samples on this machine, before it is paid for."""

import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.spec import EncoderSpec, VisionSpec
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.extraction.chunks import Chunk, decode
from sharelock_ray.features.manifest import Prediction
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.sample import Reject, Sample, Shard, Source

if TYPE_CHECKING:
    from sharelock_ray.extraction.group import EncoderGroup

PROBE = 200
"""Samples (issue 3, 8)."""
# As few are read whole, to count what a byte of them holds.
_SHARDS = 4


class EncoderPlan(Config):
    """One feature set to come, and what it came to where it is there already."""

    encoder: str
    """Its folder name."""
    rows: int
    bytes: int
    """Of the stored embeddings and columns."""
    seconds_per_sample: float
    """Of the encoder, on this machine's device, or on the CPUs of one actor."""
    encoder_seconds: float
    """Of all actors together: longer than on the device alone where actors share it."""
    gpu_hours: float
    """While the encoder is at work."""


class SplitPlan(Config):
    """One split through all its encoders."""

    split: str
    samples: int
    probed: int
    """Inputs that were encoded for it here."""
    input_bytes: int
    read_seconds_per_sample: float
    """Reading and decoding, on one core."""
    encoders: tuple[EncoderPlan, ...]
    hours: float
    gpu_hours: float
    """That actors hold, also while they wait for reading."""
    cores_to_read: float
    """Cores that keep the actors fed; 0 where they read for themselves."""
    cores_free: float | None
    """Cores of this machine that the actors leave to reading; None where they are those of a cluster."""
    cost: float | None
    """GPU-hours at the given price, or actor-hours where no GPU is asked for."""

    @property
    def bytes(self) -> int:
        return sum(encoder.bytes for encoder in self.encoders)


class PlanTotal(Config):
    """All splits, which come one after another, through all encoders."""

    hours: float
    gpu_hours: float
    bytes: int
    cost: float | None


class Plan(Document):
    """`plan.json`."""

    device: str
    load_seconds: float
    """That loading the encoders took here."""
    price: float | None
    splits: tuple[SplitPlan, ...]
    total: PlanTotal


def estimate(recipe: Recipe, samples: int = PROBE, price: float | None = None) -> Plan:
    """Probes every split, and keeps the result beside the run, where manifests will quote it.

    Args:
        samples: probed of each split, from shards spread over it.
        price: of a GPU-hour, or of an actor-hour where the recipe asks for no GPU; in any currency.

    Raises:
        RequestError: the recipe asks for a GPU, and this machine has none; there is no input; or no such price.
    """
    if price is not None and not 0 <= price < math.inf:
        raise RequestError(f"the price is {price}: give a number, at least 0")
    options = recipe.operations.extraction
    encoders = [encoder.resolved() for encoder in recipe.encoders]
    with _threads_of_an_actor(options):
        started = time.perf_counter()
        groups = _load(encoders, options)
        load_seconds = time.perf_counter() - started
        splits = tuple(
            _split(split, source, encoders, groups, options, samples, price) for split, source in recipe.splits.items()
        )
    total = PlanTotal(
        hours=sum(split.hours for split in splits),
        gpu_hours=sum(split.gpu_hours for split in splits),
        bytes=sum(split.bytes for split in splits),
        cost=None if price is None else sum(split.cost or 0.0 for split in splits),
    )
    found = Plan(device=groups[0].encoder.device, load_seconds=load_seconds, price=price, splits=splits, total=total)
    storage.write_json(_path(recipe), found.content())
    return found


def predictions(recipe: Recipe, split: str) -> dict[str, Prediction]:
    """What the recipe's plan foresees for the feature sets of a split, by folder name; empty where there is no plan,
    or one that another version made."""
    try:
        found = read_document(Plan, _path(recipe))
    except FileNotFoundError:
        return {}
    except SharelockError:
        say(f"{_path(recipe)} cannot be read, and is not compared with what comes: run `sharelock plan` again for that")
        return {}
    return {
        encoder.encoder: Prediction(
            rows=encoder.rows,
            bytes=encoder.bytes,
            wall_seconds=round(found.load_seconds + each.hours * 3600, 2),
            encoder_seconds=round(encoder.encoder_seconds, 2),
            gpu_hours=round(encoder.gpu_hours, 6),
        )
        for each in found.splits
        if each.split == split
        for encoder in each.encoders
    }


def _path(recipe: Recipe) -> str:
    return storage.join(recipe.output, "plan.json")


@contextmanager
def _threads_of_an_actor(options: ExtractionOptions) -> Iterator[None]:
    """As many threads as Ray has an actor use, unless the environment says how many: one for each whole CPU."""
    import torch

    usual = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(options.num_cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _load(encoders: Sequence[EncoderSpec], options: ExtractionOptions) -> "list[EncoderGroup]":
    import torch

    from sharelock_ray.extraction.group import load_encoders

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
    plans = tuple(_encoder(spec, encoded[i], decoded.size, total, options) for i, spec in enumerate(encoders))
    actors, free = options.actors(len(shards)), _free_cpus(options, len(shards))
    read, encode = total * read_each, total * sum(each.seconds_per_sample for each in plans)
    seconds, cores = _wall_seconds(options, len(shards), read, encode, free)
    if cores and free is None:
        say(f"plan: {split} takes this long where {cores:,.1f} cores are free to read, and longer where fewer are")
    elif cores and free is not None and cores > min(free, len(shards)):
        say(f"plan: {split} waits for reading: that wants {cores:,.1f} cores, and has {min(free, len(shards)):g}")
    unit_hours = seconds * actors / 3600
    return SplitPlan(
        split=split,
        samples=total,
        probed=probe.size,
        input_bytes=total_bytes,
        read_seconds_per_sample=read_each,
        encoders=plans,
        hours=seconds / 3600,
        gpu_hours=unit_hours * options.num_gpus,
        cores_to_read=cores,
        cores_free=free,
        cost=None if price is None else price * unit_hours * (options.num_gpus or 1),
    )


def _wall_seconds(
    options: ExtractionOptions, shards: int, read: float, encode: float, free: float | None
) -> tuple[float, float]:
    """How long reading and encoding take together, and the cores that would keep the encoders at work.

    Args:
        read: seconds on one core.
        encode: seconds on one whole device, or on the CPUs of one actor.
        free: cores beside the actors; None where that is not known, and there are taken to be enough.
    """
    actors = options.actors(shards)
    if options.actors_read:
        return (read + encode) / actors, 0.0
    encoding = encode / actors / _share(options)
    cores = read / encoding if encoding else 0.0
    return encoding if free is None else max(encoding, read / min(free, shards)), cores


def _share(options: ExtractionOptions) -> float:
    """Of a device that an actor has: two on one GPU are no faster than one, and encoders use no second."""
    return min(1.0, options.num_gpus or 1.0)


def _free_cpus(options: ExtractionOptions, shards: int) -> float | None:
    """CPUs that the actors leave to reading on this machine; None where they are for a cluster."""
    import torch

    actors = options.actors(shards)
    # As many as Ray is started with here.
    free = max(2, cpu_count()) - actors * options.num_cpus
    here = free >= 1 and actors * options.num_gpus <= torch.cuda.device_count()
    return free if here and not os.environ.get("RAY_ADDRESS") else None


def _probe(source: Source, shards: Sequence[Shard], samples: int) -> tuple[Chunk, int, int, float]:
    """Inputs drawn evenly from those of some shards, as one chunk; then the number of all inputs of those shards, their
    bytes, and the seconds that reading them took."""
    draw = random.Random(0)
    some = [shard for shard in draw.sample(shards, len(shards)) if shard.bytes] or shards[:1]
    taken: list[Sample | Reject] = []
    inputs = seen_bytes = 0
    started = time.perf_counter()
    for read, shard in enumerate(some):
        if read >= _SHARDS and inputs >= samples:
            break
        seen_bytes += shard.bytes
        for item in source.read(shard):
            inputs += 1
            # Each input so far is among those taken with the same probability (J. Vitter's algorithm R, 1985).
            if len(taken) < samples:
                taken.append(item)
            elif (place := draw.randrange(inputs)) < samples:
                taken[place] = item
    seconds = time.perf_counter() - started
    found = [item for item in taken if isinstance(item, Sample)]
    chunk = Chunk(0, 0, True, "probe", found, [item for item in taken if isinstance(item, Reject)])
    return chunk, max(1, inputs), max(1, seen_bytes), seconds


def _encoder(
    spec: EncoderSpec, encoded: EncodedChunk, probed: int, total: int, options: ExtractionOptions
) -> EncoderPlan:
    rows = len(encoded.embeddings)
    width = encoded.embeddings.shape[1] * (2 if spec.stored_dtype == "float16" else 4)
    texts = sum(len(str(text).encode()) for name in ("key", "text") for text in encoded.columns.get(name, []))
    share = total / probed
    encoder_seconds = encoded.seconds * share / _share(options)
    return EncoderPlan(
        encoder=spec.folder(),
        rows=round(rows * share),
        bytes=round((rows * width + texts) * share),
        seconds_per_sample=encoded.seconds / probed,
        encoder_seconds=encoder_seconds,
        gpu_hours=encoder_seconds * options.num_gpus / 3600,
    )
