"""The stream of one extraction: tasks read and decode shards, a pool of actors encodes and stages chunks.

An actor holds all encoders of the job, so a chunk is sent to one process only. If an actor needs exactly one CPU, Ray
fuses reading into the actor, and pixels never leave the process. An actor with a GPU takes chunks decoded by CPU tasks,
two at a time: one is fetched or written while the other is on the device.
"""

import os
import pickle
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from ray.data import ActorPoolStrategy

from sharelock_ray.encoders.images import Preprocessing
from sharelock_ray.encoders.spec import EncoderSpec, VisionSpec
from sharelock_ray.engine import cluster
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.engine.stream import packed, stream_of, unpacked
from sharelock_ray.extraction.chunks import Chunk, cut, decode
from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.writer import FeatureSetWriter
from sharelock_ray.memory import keep_freed_memory
from sharelock_ray.sources.sample import Shard, Source


@dataclass(frozen=True)
class ReadTask:
    """A shard to read; `done[i]` are the chunks that encoder i has already staged, None if all of them."""

    shard: Shard
    done: tuple[frozenset[int] | None, ...]


def encoded_chunks(
    source: Source,
    tasks: Sequence[ReadTask],
    encoders: Sequence[EncoderSpec],
    writers: Sequence[FeatureSetWriter],
    options: ExtractionOptions,
) -> Generator[ChunkReport]:
    """Runs the stream; yields a report per staged chunk, in any order.

    Raises:
        RequestError: the smallest pool of actors needs more than Ray has.
    """
    actors = options.actors(len(tasks))
    cluster.require_resources(
        options.least_resources,
        "lower operations.extraction.min_actors, num_cpus or num_gpus (one CPU must stay free to read)",
    )
    stream = stream_of(tasks).map_batches(
        _read,
        fn_args=(source, encoders, writers, options.chunk_size),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    stream = stream.map_batches(
        _Encode,
        fn_constructor_args=(tuple(encoders), tuple(writers), options),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=min(options.min_actors, actors),
            max_size=actors,
            max_concurrent_calls_per_actor=2 if options.num_gpus else 1,
            enable_true_multi_threading=bool(options.num_gpus),
        ),
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
    )
    for row in stream.iter_rows():
        yield pickle.loads(row["report"])


def _read(
    table: pa.Table,
    source: Source,
    encoders: Sequence[EncoderSpec],
    writers: Sequence[FeatureSetWriter],
    chunk_size: int,
) -> Iterator[pa.Table]:
    """Reads one shard and decodes the chunks that some encoder still needs.

    The chunks depend on the task alone, since Ray may repeat it. A chunk staged by an earlier attempt has no pixels.
    """
    task: ReadTask = unpacked(table)
    part = task.shard.index
    # Includes chunks that other drivers on the same folder have staged by now.
    staged = {i: writers[i].staged_part(part) for i, done in enumerate(task.done) if done is not None}
    started = time.perf_counter()
    for chunk in cut(source, task.shard, chunk_size):
        wanted = [i for i in staged if chunk.index not in (task.done[i] or ())]
        missing = [i for i in wanted if not staged[i].has_chunk(chunk.index)]
        if wanted:
            decoded = decode(chunk, _preprocessings([encoders[i] for i in missing]))
            seconds = time.perf_counter() - started
            yield packed(_Work(decoded, wanted, missing, seconds), arrays=len(_preprocessings(encoders)))
        started = time.perf_counter()


@dataclass(frozen=True)
class _Work:
    """A decoded chunk; `missing` are those of the `wanted` encoders that have not staged it yet."""

    chunk: Chunk
    wanted: list[int]
    missing: list[int]
    read_seconds: float


def _preprocessings(encoders: Sequence[EncoderSpec]) -> list[Preprocessing]:
    """The distinct preprocessings of these encoders."""
    return list(dict.fromkeys(spec.preprocessing for spec in encoders if isinstance(spec, VisionSpec)))


class _Encode:
    """An actor that holds every encoder of the job on its device."""

    def __init__(
        self, encoders: Sequence[EncoderSpec], writers: Sequence[FeatureSetWriter], options: ExtractionOptions
    ) -> None:
        from sharelock_ray.energy import EnergyMeter
        from sharelock_ray.extraction.group import load_encoders

        if not options.num_gpus:
            keep_freed_memory()
        self._energy = EnergyMeter(min(options.num_gpus, 1.0))
        self._writers = writers
        self._groups = load_encoders(
            encoders,
            "cuda" if options.num_gpus else "cpu",
            image_batch_size=options.image_batch_size,
            token_budget=options.token_budget,
            compiled=options.compile,
            channels_last=options.channels_last,
        )
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, table: pa.Table) -> pa.Table:
        work: _Work = unpacked(table)
        chunk = work.chunk
        rejects = tokens = 0
        encode_seconds = write_seconds = 0.0
        for group in self._groups:
            if not set(group.members) & set(work.missing):
                continue
            begun = self._energy.now()
            readings = group.encode(chunk)
            joules = self._energy.since(begun)
            # All readings share one forward pass, with its seconds and energy.
            tokens += readings[0].tokens
            for i, encoded in zip(group.members, readings, strict=True):
                if i not in work.missing:
                    continue
                encoded.joules = None if joules is None else joules / len(readings)
                started = time.perf_counter()
                self._writers[i].stage(chunk.part, chunk.index, chunk.last, chunk.source, encoded)
                write_seconds += time.perf_counter() - started
                encode_seconds += encoded.seconds
                rejects += len(encoded.rejects)
        report = ChunkReport(
            part=chunk.part,
            index=chunk.index,
            last=chunk.last,
            encoders=tuple(work.wanted),
            samples=chunk.size,
            bytes=chunk.bytes,
            rejects=rejects,
            tokens=tokens,
            read_seconds=work.read_seconds,
            encode_seconds=encode_seconds,
            write_seconds=write_seconds,
            worker=self._worker,
        )
        return pa.table({"report": [pickle.dumps(report)]})
