"""`plan`: estimates the time and cost of an extraction from a probe of samples on this machine."""

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
from sharelock_ray.encoders.resolved import ResolvedEncoder
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
from sharelock_ray.workflows.inputs import Inputs, Split, check_inputs, prepare

if TYPE_CHECKING:
    from sharelock_ray.extraction.group import EncoderGroup

PROBE = 200
"""Default number of probed samples per split."""
# Minimum number of shards read as a whole, to estimate samples per byte.
_SHARDS = 4


class EncoderPlan(Config):
    """Estimate for one feature set."""

    encoder: str
    """Its folder name."""
    rows: int
    bytes: int
    """Bytes of the stored embeddings and columns."""
    seconds_per_sample: float
    """Encoder time on this machine's device, or on the CPUs of one actor."""
    encoder_seconds: float
    """Sum over actors; larger if actors share a device."""
    gpu_hours: float
    """GPU-hours of encoding alone."""


class SplitPlan(Config):
    """Estimate for one split with all its encoders."""

    split: str
    samples: int
    probed: int
    """Number of inputs encoded in the probe."""
    input_bytes: int
    read_seconds_per_sample: float
    """Time to read and decode on one core."""
    encoders: tuple[EncoderPlan, ...]
    hours: float
    gpu_hours: float
    """GPU-hours reserved by actors, including time spent waiting for reading."""
    cores_to_read: float
    """Cores needed to keep the actors busy; 0 if actors read their own input."""
    cores_free: float | None
    """Cores of this machine that remain for reading; None on a cluster."""
    cost: float | None
    """Price of the GPU-hours, or of the actor-hours if no GPU is requested."""

    @property
    def bytes(self) -> int:
        return sum(encoder.bytes for encoder in self.encoders)


class PlanTotal(Config):
    """Sums over all splits, which are extracted one at a time."""

    hours: float
    gpu_hours: float
    bytes: int
    cost: float | None


class Plan(Document):
    """`plan.json`."""

    device: str
    load_seconds: float
    """Time to load the encoders on this machine."""
    price: float | None
    splits: tuple[SplitPlan, ...]
    total: PlanTotal


def plan(recipe: Recipe, samples: int = PROBE, price: float | None = None) -> Plan:
    """Probes every split and the class prompts; writes `plan.json`, which manifests of the extraction quote.

    Args:
        samples: number of samples to probe per split, from random shards.
        price: price of a GPU-hour, or of an actor-hour if the recipe requests no GPU, in any currency.

    Raises:
        RequestError: the recipe requests a GPU and this machine has none, there is no input, or the price is invalid.
    """
    if price is not None and not 0 <= price < math.inf:
        raise RequestError(f"the price is {price}: give a number, at least 0")
    options = recipe.operations.extraction
    prepare(recipe)
    inputs = Inputs(recipe)
    check_inputs(inputs.all_splits)
    encoders = list(dict.fromkeys(encoder for split in inputs.all_splits for encoder in split.encoders))
    with _threads_of_an_actor(options):
        started = time.perf_counter()
        groups = _load([encoder.spec for encoder in encoders], options)
        load_seconds = time.perf_counter() - started
        splits = tuple(_split(split, encoders, groups, options, samples, price) for split in inputs.all_splits)
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
    """Predictions of the recipe's plan for the feature sets of a split, by folder name; empty without a readable
    plan."""
    try:
        found = read_document(Plan, _path(recipe))
    except FileNotFoundError:
        return {}
    except SharelockError:
        say(f"{_path(recipe)} cannot be read, so there is no comparison with the plan: run `sharelock plan` again")
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
    """Uses an actor's number of threads within the block: one per whole CPU, unless the environment sets it."""
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
            "the recipe's actors need a GPU, and this machine has none: make the plan on a machine with one, "
            "or set operations.extraction.num_gpus=0"
        )
    say(f"plan: loading {', '.join(encoder.name for encoder in encoders)}")
    return load_encoders(
        encoders,
        "cuda" if options.num_gpus else "cpu",
        image_batch_size=options.image_batch_size,
        token_budget=options.token_budget,
        compiled=options.compile,
        channels_last=options.channels_last,
    )


def _split(
    split: Split,
    encoders: Sequence[ResolvedEncoder],
    groups: "Sequence[EncoderGroup]",
    options: ExtractionOptions,
    samples: int,
    price: float | None,
) -> SplitPlan:
    """Probes a split.

    Args:
        encoders: all loaded encoders.
        groups: their models.
    """
    shards = split.source.shards()
    probe, inputs, seen_bytes, read_seconds = _probe(split.source, shards, samples)
    if not probe.samples:
        raise RequestError(f"the first shards of {split.title} have no readable sample: see `sharelock rejects`")
    total_bytes = sum(shard.bytes for shard in shards)
    total = round(inputs * total_bytes / seen_bytes)
    started = time.perf_counter()
    decoded = decode(probe, {e.spec.preprocessing for e in split.encoders if isinstance(e.spec, VisionSpec)})
    read_each = read_seconds / inputs + (time.perf_counter() - started) / probe.size
    # All encoders of a group have one modality.
    fed = [group for group in groups if encoders[group.members[0]] in split.encoders]
    for group in fed:
        group.encode(decoded)  # Warm-up.
    encoded = {encoders[i]: c for group in fed for i, c in zip(group.members, group.encode(decoded), strict=True)}
    plans = tuple(_encoder(each, encoded[each], decoded.size, total, options) for each in split.encoders)
    actors, free = options.actors(len(shards)), _free_cpus(options, len(shards))
    read, encode = total * read_each, total * sum(each.seconds_per_sample for each in plans)
    seconds, cores = _wall_seconds(options, len(shards), read, encode, free)
    if cores and free is None:
        say(f"plan: {split.title} takes this long if {cores:,.1f} cores are free for reading, and longer with fewer")
    elif cores and free is not None and cores > min(free, len(shards)):
        say(
            f"plan: {split.title} is limited by reading: it needs {cores:,.1f} cores and has {min(free, len(shards)):g}"
        )
    unit_hours = seconds * actors / 3600
    return SplitPlan(
        split=split.title,
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
    """Wall seconds of reading and encoding, and the cores needed to keep the encoders busy.

    Args:
        read: seconds of reading on one core.
        encode: seconds of encoding on one whole device, or on the CPUs of one actor.
        free: cores not used by actors; None if unknown, which assumes that they suffice.
    """
    actors = options.actors(shards)
    if options.actors_read:
        return (read + encode) / actors, 0.0
    encoding = encode / actors / _share(options)
    cores = read / encoding if encoding else 0.0
    return encoding if free is None else max(encoding, read / min(free, shards)), cores


def _share(options: ExtractionOptions) -> float:
    """An actor's share of a device: actors on one GPU share its speed, and an encoder uses one GPU at most."""
    return min(1.0, options.num_gpus or 1.0)


def _free_cpus(options: ExtractionOptions, shards: int) -> float | None:
    """CPUs of this machine that actors leave for reading; None on a cluster."""
    import torch

    actors = options.actors(shards)
    # The CPUs that a local Ray starts with.
    free = max(2, cpu_count()) - actors * options.num_cpus
    here = free >= 1 and actors * options.num_gpus <= torch.cuda.device_count()
    return free if here and not os.environ.get("RAY_ADDRESS") else None


def _probe(source: Source, shards: Sequence[Shard], samples: int) -> tuple[Chunk, int, int, float]:
    """Draws inputs uniformly from some shards.

    Returns:
        the inputs as one chunk; the number of inputs in those shards, their bytes, and the seconds to read them.
    """
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
            # Reservoir sampling: each input so far is kept with equal probability (Vitter's algorithm R, 1985).
            if len(taken) < samples:
                taken.append(item)
            elif (place := draw.randrange(inputs)) < samples:
                taken[place] = item
    seconds = time.perf_counter() - started
    found = [item for item in taken if isinstance(item, Sample)]
    chunk = Chunk(0, 0, True, "probe", found, [item for item in taken if isinstance(item, Reject)])
    return chunk, max(1, inputs), max(1, seen_bytes), seconds


def _encoder(
    encoder: ResolvedEncoder, encoded: EncodedChunk, probed: int, total: int, options: ExtractionOptions
) -> EncoderPlan:
    rows = len(encoded.embeddings)
    width = encoded.embeddings.shape[1] * (2 if encoder.spec.stored_dtype == "float16" else 4)
    texts = sum(len(str(text).encode()) for name in ("key", "text") for text in encoded.columns.get(name, []))
    share = total / probed
    encoder_seconds = encoded.seconds * share / _share(options)
    return EncoderPlan(
        encoder=encoder.folder,
        rows=round(rows * share),
        bytes=round((rows * width + texts) * share),
        seconds_per_sample=encoded.seconds / probed,
        encoder_seconds=encoder_seconds,
        gpu_hours=encoder_seconds * options.num_gpus / 3600,
    )
