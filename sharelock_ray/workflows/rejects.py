"""`rejects`: lists, exports and retries the inputs that could not be encoded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.config import content_hash
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.replacement import rejected_parts, remove_unnamed_parts, replace_parts
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.sample import Shard
from sharelock_ray.workflows.inputs import Inputs, feature_sets, refuse_other_inputs

_WRITERS = ("csv", "jsonl", "parquet")
# No dataset's name begins with a dot.
_SCRATCH = ".retry"


def rejects(recipe: Recipe) -> pa.Table:
    """All rejects of the recipe's feature sets, with split, modality and encoder."""
    return pa.concat_tables(_labelled(each) for each in feature_sets(Inputs(recipe).known_splits))


def export(recipe: Recipe, path: str) -> int:
    """Writes all rejects as CSV, JSON lines or Parquet, chosen by the file extension.

    Returns:
        the number of rejects.

    Raises:
        RequestError: unknown file extension.
    """
    ending = path.rpartition(".")[2].lower()
    if ending not in _WRITERS:
        raise RequestError(f"{path}: the file extension must be one of .{', .'.join(_WRITERS)}")
    table = rejects(recipe)
    sink = pa.BufferOutputStream()
    if ending == "csv":
        csv.write_csv(table, sink)
    elif ending == "parquet":
        pq.write_table(table, sink)
    else:
        table.to_pandas().to_json(sink, orient="records", lines=True, force_ascii=False)
    storage.write_bytes(storage.absolute(path), sink.getvalue().to_pybytes())
    return int(table.num_rows)


@dataclass(frozen=True)
class Retry:
    """The result of a retry for one feature set."""

    uri: str
    tried: int
    """Number of rejected inputs."""
    recovered: int
    """Number of rows gained."""


def retry(recipe: Recipe) -> list[Retry]:
    """Extracts the shards with rejects again, and replaces the parts that have fewer rejects now.

    A retry that was killed continues where it stopped.

    Raises:
        RequestError: another run owns the feature sets, the source lists other inputs than they were made from, or the
            inputs are elsewhere now.
    """
    from sharelock_ray.engine import cluster
    from sharelock_ray.engine.extraction import ExtractionJob, extract

    if recipe.features_of is not None:
        raise RequestError(
            f"the feature sets are those of {recipe.features_of} (`features_of`), which this recipe only reads: "
            f"try again with the recipe that extracted them"
        )
    folder = storage.join(recipe.features_folder, _SCRATCH)
    found = []
    with cluster.connected():
        for split in Inputs(recipe).known_splits:
            sets = split.open()
            rejected = [_rejected_shards(each) for each in sets]
            if not any(rejected):
                continue
            refuse_other_inputs(split.source, sets)
            # Encoders with rejects in the same shards share one extraction.
            for names in dict.fromkeys(filter(None, rejected)):
                chosen = [place for place, each in enumerate(rejected) if each == names]
                shards = tuple(shard for shard in split.source.shards() if shard.name in names)
                _refuse_inputs_elsewhere(shards, [sets[place] for place in chosen])
                job = ExtractionJob(
                    storage.join(folder, _version(shards)),
                    split.dataset,
                    split.name,
                    split.source,
                    tuple(split.encoders[place] for place in chosen),
                    shards=shards,
                )
                for place, retried in zip(chosen, extract(job, recipe.operations.extraction), strict=True):
                    known = sets[place]
                    recovered = replace_parts(known.uri, retried).manifest.rows - known.manifest.rows
                    found.append(Retry(known.uri, len(known.rejected_keys), recovered))
                    say(
                        f"rejects of {split.title} {known.manifest.modality}: "
                        f"{recovered} rows from {found[-1].tried} inputs"
                    )
    storage.remove(folder)
    return found


def _rejected_shards(feature_set: FeatureSet) -> frozenset[str]:
    """Names of the shards to extract again."""
    remove_unnamed_parts(feature_set.uri)
    return frozenset(feature_set.manifest.inputs[part.index].name for part in rejected_parts(feature_set))


def _version(shards: Sequence[Shard]) -> str:
    """Identifies the present content of shards, so that a retry does not continue one of other content."""
    return content_hash([(shard.name, shard.bytes, shard.version) for shard in shards])


def _refuse_inputs_elsewhere(shards: Sequence[Shard], sets: Sequence[FeatureSet]) -> None:
    """Raises RequestError if a shard is at another path than when a set was made.

    Inputs may have been repaired, so neither size nor content can identify them.
    """
    for feature_set in sets:
        made = {each.name: _place(each.uri) for each in feature_set.manifest.inputs}
        for shard in shards:
            if made[shard.name] != _place(shard.uri):
                raise RequestError(
                    f"{feature_set.uri} was made from {made[shard.name]}, and the recipe names {_place(shard.uri)}: "
                    f"rejects are tried again from where they came: put the inputs back there, or set the data's paths"
                )


def _place(uri: str) -> str:
    """The file or folder of a shard; the byte offset of a range of a list changes if an earlier row is repaired."""
    return re.sub(r"#\d+$", "", uri)


def _labelled(feature_set: FeatureSet) -> pa.Table:
    manifest, table = feature_set.manifest, feature_set.rejects
    labels = {"split": manifest.split, "modality": manifest.modality, "encoder": manifest.encoder["name"]}
    columns = {name: pa.array([value] * table.num_rows, pa.string()) for name, value in labels.items()}
    return pa.table({**columns, **{name: table[name] for name in table.schema.names}})
