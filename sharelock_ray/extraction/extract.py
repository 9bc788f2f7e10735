"""Extraction of one dataset split through any number of frozen encoders, in one read of the data.

    shards → read and decode (CPU tasks, one a shard) → every encoder (a pool of actors) → staged chunks → sealed parts

An actor holds all encoders of the job, so a chunk visits one process and each device is shared as the work demands.
"""

import importlib.metadata
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sharelock_ray import engine

# isort: split
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from sharelock_ray.encoders.chunks import Chunk, Source, cut, decode, encode_language, encode_vision
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.options import ExtractionOptions
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.features.schema import feature_set_uri
from sharelock_ray.features.writer import FeatureSetWriter, StagedPart
from sharelock_ray.progress import Progress, say
from sharelock_ray.sources.sample import Shard

_SOFTWARE = ("sharelock-ray", "ray", "torch", "timm", "transformers", "pyarrow", "pillow")


@dataclass(frozen=True)
class ExtractionJob:
    """What to extract: a source, as one split of a dataset, through encoders, into feature sets below `root`."""

    root: str
    dataset: str
    split: str
    source: Source
    encoders: tuple[EncoderSpec, ...]

    def uri(self, encoder: EncoderSpec) -> str:
        """The feature set of one encoder."""
        return feature_set_uri(self.root, self.dataset, self.split, encoder.modality, encoder.folder())


def extract(job: ExtractionJob, options: ExtractionOptions) -> list[FeatureSet]:
    """Makes, or continues, the feature sets of `job`; complete ones are left alone.

    Returns:
        the feature set of each encoder, in their order.

    Raises:
        RequestError: no input, an unknown model, or more resources than Ray has.
        RunError: a worker failed.
    """
    encoders = tuple(encoder.resolved() for encoder in job.encoders)
    todo = [encoder for encoder in encoders if not is_complete(job.uri(encoder))]
    if todo:
        shards = job.source.shards()
        if not shards:
            raise RequestError(f"the source of {job.dataset}/{job.split} is empty")
        writers = [FeatureSetWriter(job.uri(e), e.modality, e.stored_dtype) for e in todo]
        sizes = [writer.start(shards, options.chunk_size) for writer in writers]
        with engine.connected(), engine.readable_errors(f"extract {job.split}"):
            # Sets that runs with other options began are cut otherwise, and so are a read of their own.
            for size in sorted(set(sizes)):
                chosen = [i for i, own in enumerate(sizes) if own == size]
                same = options.model_copy(update={"chunk_size": size})
                _run(job, same, shards, [todo[i] for i in chosen], [writers[i] for i in chosen])
    return [open_features(job.uri(encoder)) for encoder in encoders]


def _run(
    job: ExtractionJob,
    options: ExtractionOptions,
    shards: Sequence[Shard],
    encoders: Sequence[EncoderSpec],
    writers: Sequence[FeatureSetWriter],
) -> None:
    started = time.monotonic()
    staged = [writer.staged() for writer in writers]
    sealing = [
        _seal.remote(writer, part) for writer, parts in zip(writers, staged, strict=True) for part in _unsealed(parts)
    ]
    tasks = _tasks(shards, staged)
    if tasks:
        kept = sum(len(part.chunks) for parts in staged for part in parts.values())
        sealed = sum(part.sealed for parts in staged for part in parts.values())
        if kept or sealed:
            say(f"extract {job.split}: continues after {sealed} finished parts and {kept} chunks of others")
        stage = f"extract {job.split}"
        with Progress(stage, "samples") as progress:
            for row in _encoded(job, options, tasks, encoders, writers):
                for i in row["encoders"]:
                    part = staged[i].get(row["part"], StagedPart())
                    last = row["index"] if row["last"] else part.last
                    staged[i][row["part"]] = part = StagedPart(part.chunks | {row["index"]}, last)
                    if part.is_whole:
                        sealing.append(_seal.remote(writers[i], row["part"]))
                progress.update(row["samples"])
    ray.get(sealing)
    for encoder, writer in zip(encoders, writers, strict=True):
        writer.finish(
            dataset=job.dataset,
            split=job.split,
            encoder=encoder.model_dump(mode="json"),
            weights_sha256=encoder.weights_digest(),
            dim=writer.dim(),
            shards=shards,
            software={name: importlib.metadata.version(name) for name in _SOFTWARE},
            gpus=options.num_gpus,
            wall_seconds=time.monotonic() - started,
        )


def _unsealed(parts: dict[int, StagedPart]) -> list[int]:
    return [part for part, state in parts.items() if state.is_whole and not state.sealed]


@dataclass(frozen=True)
class _Task:
    """A shard to read; `done[i]` are the chunks that encoder i has already staged, None where all of them."""

    shard: Shard
    done: tuple[frozenset[int] | None, ...]


def _tasks(shards: Sequence[Shard], staged: Sequence[dict[int, StagedPart]]) -> list[_Task]:
    tasks = []
    for shard in shards:
        states = [parts.get(shard.index, StagedPart()) for parts in staged]
        done = tuple(None if state.is_whole else state.chunks for state in states)
        if any(chunks is not None for chunks in done):
            tasks.append(_Task(shard, done))
    return tasks


def _encoded(
    job: ExtractionJob,
    options: ExtractionOptions,
    tasks: Sequence[_Task],
    encoders: Sequence[EncoderSpec],
    writers: Sequence[FeatureSetWriter],
) -> Iterator[dict[str, Any]]:
    """Runs the stream; yields what was staged, chunk by chunk."""
    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = 300
    context.print_on_execution_start = False
    # A block of about one decoded chunk, so that an actor starts on the first while the next is decoded.
    context.target_max_block_size = 16 << 20
    actors = min(options.max_actors, len(tasks))
    engine.require_resources(
        {"CPU": options.min_actors * options.num_cpus + 1, "GPU": options.min_actors * options.num_gpus},
        "lower operations.extraction.min_actors, num_cpus or num_gpus (one CPU must stay free to read)",
    )
    stream = ray.data.from_items([{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    stream = stream.map_batches(
        _read, fn_args=(job.source, encoders, options.chunk_size), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    stream = stream.map_batches(
        _Encode,
        fn_constructor_args=(tuple(encoders), tuple(writers), options),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=min(options.min_actors, actors), max_size=actors),
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
    )
    for row in stream.iter_rows():
        yield pickle.loads(row["staged"])


def _read(table: pa.Table, source: Source, encoders: Sequence[EncoderSpec], chunk_size: int) -> Iterator[pa.Table]:
    """Reads one shard and decodes the chunks that some encoder still needs."""
    task: _Task = pickle.loads(table["task"][0].as_py())
    for chunk in cut(source, task.shard, chunk_size):
        wanted = [i for i, done in enumerate(task.done) if done is not None and chunk.index not in done]
        if wanted:
            needed = {e.preprocessing for i, e in enumerate(encoders) if i in wanted and isinstance(e, VisionSpec)}
            content = pickle.dumps((decode(chunk, needed), wanted), protocol=5)
            yield pa.table({"chunk": pa.array([content], pa.large_binary())})


class _Encode:
    """An actor: every encoder of the job, resident on its device."""

    def __init__(
        self, encoders: Sequence[EncoderSpec], writers: Sequence[FeatureSetWriter], options: ExtractionOptions
    ) -> None:
        import torch

        from sharelock_ray.encoders.language import LanguageEncoder
        from sharelock_ray.encoders.vision import VisionEncoder

        device = "cuda" if options.num_gpus and torch.cuda.is_available() else "cpu"
        self._specs, self._writers = encoders, writers
        self._encoders: list[Any] = [
            VisionEncoder(spec, device, options.image_batch_size)
            if isinstance(spec, VisionSpec)
            else LanguageEncoder(spec, device, options.token_budget)
            for spec in encoders
        ]

    def __call__(self, table: pa.Table) -> pa.Table:
        content = table["chunk"][0].as_buffer()
        chunk, wanted = pickle.loads(content)
        for i in wanted:
            spec, encoder = self._specs[i], self._encoders[i]
            encoded = (
                encode_language(encoder, chunk)
                if isinstance(spec, LanguageSpec)
                else encode_vision(encoder, chunk, spec.preprocessing)
            )
            self._writers[i].stage(chunk.part, chunk.index, chunk.last, chunk.source, encoded)
        return pa.table({"staged": [pickle.dumps(self._report(chunk, wanted))]})

    def _report(self, chunk: Chunk, wanted: list[int]) -> dict[str, Any]:
        return {
            "part": chunk.part,
            "index": chunk.index,
            "last": chunk.last,
            "samples": chunk.size,
            "encoders": wanted,
        }


@ray.remote(num_cpus=0.1, max_retries=3)
def _seal(writer: FeatureSetWriter, part: int) -> None:
    writer.seal(part)
