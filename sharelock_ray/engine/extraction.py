"""Extraction of one dataset split with any number of frozen encoders, in one pass over the data.

Determines the remaining work, follows the stream, seals a part once its last chunk is staged, and finishes the sets.
"""

import importlib.metadata
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import ray

from sharelock_ray.encoders.resolved import ResolvedEncoder
from sharelock_ray.engine import cluster
from sharelock_ray.engine.encoding import ReadTask, encoded_chunks
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.extraction.meter import Meter, combined
from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import Origin, Prediction, is_complete
from sharelock_ray.features.schema import feature_set_uri
from sharelock_ray.features.state import read_live, write_live
from sharelock_ray.features.writer import FeatureSetWriter, StagedPart, remove_leftovers
from sharelock_ray.progress import say
from sharelock_ray.sources.sample import Shard, Source, change

_PUBLISH_EVERY_S = 10.0
_SOFTWARE = ("sharelock-ray", "ray", "torch", "timm", "transformers", "pyarrow", "pillow")


@dataclass(frozen=True)
class ExtractionJob:
    """One split of a dataset: its source, the encoders to apply, and the `root` of their feature sets."""

    root: str
    dataset: str
    split: str
    source: Source
    encoders: tuple[ResolvedEncoder, ...]
    planned: Mapping[str, Prediction] = field(default_factory=dict)
    """Predictions of `plan`, by an encoder's folder name."""
    shards: tuple[Shard, ...] | None = None
    """The shards to extract; None means all."""

    def uri(self, encoder: ResolvedEncoder) -> str:
        """URI of an encoder's feature set."""
        return feature_set_uri(self.root, self.dataset, self.split, encoder.modality, encoder.folder)


def extract(
    job: ExtractionJob, options: ExtractionOptions, watch: Callable[[ChunkReport], None] | None = None
) -> list[FeatureSet]:
    """Extracts the feature sets of `job`, or continues an interrupted extraction; complete sets are left unchanged.

    Args:
        watch: called with the report of each chunk.

    Returns:
        the feature set of each encoder, in their order.

    Raises:
        RequestError: no input, an unknown model, or more resources than Ray has.
        RunError: a worker failed.
    """
    todo = []
    for encoder in job.encoders:
        if is_complete(job.uri(encoder)):
            remove_leftovers(job.uri(encoder))
        else:
            todo.append(encoder)
    if todo:
        shards = job.source.shards() if job.shards is None else job.shards
        if not shards:
            raise RequestError(f"the source of {job.dataset}/{job.split} is empty")
        writers = [_writer(job, encoder) for encoder in todo]
        with cluster.connected(), cluster.readable_errors(f"extract {job.split}"):
            begun = [
                writer.start(shards, options.chunk_size, encoder.spec.commit())
                for writer, encoder in zip(writers, todo, strict=True)
            ]
            # Sets started with another chunk size are cut differently and need a separate pass.
            for size in sorted({each.chunk_size for each in begun}):
                chosen = [i for i, each in enumerate(begun) if each.chunk_size == size]
                same = options.model_copy(update={"chunk_size": size})
                commits = [begun[i].commit for i in chosen]
                _run(job, same, shards, [todo[i] for i in chosen], commits, [writers[i] for i in chosen], watch)
    return [open_features(job.uri(encoder)) for encoder in job.encoders]


def _writer(job: ExtractionJob, encoder: ResolvedEncoder) -> FeatureSetWriter:
    return FeatureSetWriter(job.uri(encoder), encoder.modality, encoder.spec.stored_dtype)


def _run(
    job: ExtractionJob,
    options: ExtractionOptions,
    shards: Sequence[Shard],
    encoders: Sequence[ResolvedEncoder],
    commits: Sequence[str | None],
    writers: Sequence[FeatureSetWriter],
    watch: Callable[[ChunkReport], None] | None,
) -> None:
    staged = [writer.staged() for writer in writers]
    source, shard_of = ray.put(job.source), {shard.index: shard for shard in shards}
    sealing = [
        _seal.remote(writer, writers, source, shard_of[part])
        for writer, parts in zip(writers, staged, strict=True)
        for part in _unsealed(parts)
    ]
    tasks = _tasks(shards, staged)
    earlier = combined(read_live(writer.uri) for writer in writers)
    with (
        Meter(f"extract {job.split}", shards, _open_chunks(tasks), earlier) as meter,
        _publishing_progress(writers, meter),
    ):
        if tasks:
            kept = sum(len(part.chunks) for parts in staged for part in parts.values())
            sealed = sum(part.sealed for parts in staged for part in parts.values())
            if kept or sealed:
                say(f"extract {job.split}: continues after {sealed} finished parts and {kept} chunks of others")
            say(f"extract {job.split}: starts workers, which load {', '.join(encoder.name for encoder in encoders)}")
            # The same commit on every node, even if the hub has a newer one.
            loaded = [encoder.spec.at(commit) for encoder, commit in zip(encoders, commits, strict=True)]
            stream = encoded_chunks(job.source, tasks, loaded, writers, options)
            # Otherwise the stream would continue as long as the error that ended the loop is referenced.
            with closing(stream):
                for report in stream:
                    for i in report.encoders:
                        part = staged[i].get(report.part, StagedPart()).with_chunk(report.index, report.last)
                        staged[i][report.part] = part
                        if part.is_whole:
                            sealing.append(_seal.remote(writers[i], writers, source, shard_of[report.part]))
                    sealing = _unfinished(sealing)
                    meter.add(report, all(parts.get(report.part, StagedPart()).is_whole for parts in staged))
                    if watch:
                        watch(report)
        ray.get(sealing)
    for encoder, writer in zip(encoders, writers, strict=True):
        origin = Origin(
            dataset=job.dataset,
            split=job.split,
            encoder=encoder.spec.model_dump(mode="json"),
            weights_sha256=encoder.weights_sha256,
            software={name: importlib.metadata.version(name) for name in _SOFTWARE},
        )
        writer.finish(
            shards,
            origin,
            gpus=options.num_gpus,
            wall_seconds=meter.wall_seconds,
            planned=job.planned.get(encoder.folder),
        )


@contextmanager
def _publishing_progress(writers: Sequence[FeatureSetWriter], meter: Meter) -> Iterator[None]:
    """Writes the progress of the run to storage at intervals, within the block."""
    ended = threading.Event()

    def publish() -> None:
        while True:
            # Progress is informational; storage errors will be reported by the work itself.
            with suppress(Exception):
                for writer in writers:
                    write_live(writer.uri, meter.live())
            if ended.wait(_PUBLISH_EVERY_S):
                return

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    try:
        yield
    finally:
        ended.set()
    # Otherwise the last write could follow the removal of the staging folder.
    publisher.join()


def _open_chunks(tasks: Sequence[ReadTask]) -> dict[int, int]:
    """Number of chunks staged by all encoders, by index of each unfinished shard."""
    return {
        task.shard.index: len(frozenset.intersection(*(chunks for chunks in task.done if chunks is not None)))
        for task in tasks
    }


def _unfinished(sealing: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """The tasks that are still running; raises the error of a failed task."""
    done, running = ray.wait(sealing, num_returns=len(sealing), timeout=0) if sealing else ([], [])
    ray.get(done)
    return running


def _unsealed(parts: dict[int, StagedPart]) -> list[int]:
    return [part for part, state in parts.items() if state.is_whole and not state.sealed]


def _tasks(shards: Sequence[Shard], staged: Sequence[dict[int, StagedPart]]) -> list[ReadTask]:
    tasks = []
    for shard in shards:
        states = [parts.get(shard.index, StagedPart()) for parts in staged]
        done = tuple(None if state.is_whole else state.chunks for state in states)
        if any(chunks is not None for chunks in done):
            tasks.append(ReadTask(shard, done))
    return tasks


# One CPU per task limits the number of parts held in memory. The stream never waits for this task, so the task may wait
# for a CPU until the actors have finished.
@ray.remote(num_cpus=1, max_retries=3)
def _seal(writer: FeatureSetWriter, all_writers: Sequence[FeatureSetWriter], source: Source, shard: Shard) -> None:
    # If the shard was replaced meanwhile, its chunks may mix both versions for every encoder. The run then ends before
    # further parts are sealed.
    if problem := change(source, shard):
        for each in all_writers:
            each.discard(shard.index)
        raise RunError(problem)
    writer.seal(shard.index)
