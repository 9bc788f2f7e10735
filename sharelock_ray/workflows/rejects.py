"""What a run could not encode: shown, exported, and tried again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.manifest import keys_digest
from sharelock_ray.features.recovery import recover
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.sample import Shard
from sharelock_ray.sources.subset import Subset
from sharelock_ray.workflows.inputs import Inputs, feature_sets, refuse_other_inputs

_WRITERS = ("csv", "jsonl", "parquet")
# No name of a dataset begins with a dot, so no feature set lies below it.
_SCRATCH = ".retry"


def rejects(recipe: Recipe) -> pa.Table:
    """Every reject of the recipe's feature sets: split, modality, encoder, and the columns of a reject."""
    return pa.concat_tables(_labelled(each) for each in feature_sets(Inputs(recipe).known_splits))


def export(recipe: Recipe, path: str) -> int:
    """Writes all rejects as CSV, JSON lines or Parquet, by the ending of `path`.

    Returns:
        how many.

    Raises:
        RequestError: another ending.
    """
    ending = path.rpartition(".")[2].lower()
    if ending not in _WRITERS:
        raise RequestError(f"{path}: the ending says the format, and must be one of .{', .'.join(_WRITERS)}")
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
    """What trying again came to, for one feature set."""

    uri: str
    tried: int
    """Inputs that had been rejected."""
    recovered: int
    """Rows that they gave after all."""


def retry(recipe: Recipe) -> list[Retry]:
    """Sends the rejected inputs through their encoders again; what they give is added to their feature sets.

    Work that a killed retry had done is kept, as that of an extraction is. A shard that was damaged as a whole is
    another input once it is replaced, and no matter of this.

    Raises:
        RequestError: the feature sets are another run's, which this one only reads; or the recipe's source lists other
            inputs than they were made from, or has them elsewhere.
    """
    from sharelock_ray.engine import cluster
    from sharelock_ray.engine.extraction import ExtractionJob, extract

    if recipe.features_of is not None:
        raise RequestError(
            f"the feature sets are those of {recipe.features_of} (`features_of`), which this recipe only reads: "
            f"try again with the recipe that extracted them"
        )
    # Below this folder the retry is an extraction like any other, for each choice of inputs a place of its own.
    folder = storage.join(recipe.features_folder, _SCRATCH)
    found = []
    with cluster.connected():
        for split in Inputs(recipe).known_splits:
            sets = split.open()
            keys = {s.uri: s.rejected_keys for s in sets}
            wanted = frozenset().union(*keys.values())
            if not wanted:
                continue
            refuse_other_inputs(split.source, sets)
            subset = Subset(split.source, wanted)
            _refuse_inputs_elsewhere(subset.shards(), sets)
            root = storage.join(folder, keys_digest(sorted(wanted))[:16])
            job = ExtractionJob(root, recipe.data.dataset, split.name, subset, split.encoders)
            for known, retried in zip(sets, extract(job, recipe.operations.extraction), strict=True):
                recovered = recover(known, retried).manifest.rows - known.manifest.rows
                found.append(Retry(known.uri, len(keys[known.uri]), recovered))
                say(
                    f"rejects of {split.name} {known.manifest.modality}: {recovered} rows from {found[-1].tried} inputs"
                )
    storage.remove(folder)
    return found


def _refuse_inputs_elsewhere(shards: Sequence[Shard], sets: Sequence[FeatureSet]) -> None:
    """Raises RequestError where a shard is another file than a set was made from.

    What was rejected may have been mended, so that neither its size nor its content tells whether it is the same input.
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
    """The file or folder of a shard; a run of a list may begin at another byte once a row was mended."""
    return re.sub(r"#\d+$", "", uri)


def _labelled(feature_set: FeatureSet) -> pa.Table:
    manifest, table = feature_set.manifest, feature_set.rejects
    labels = {"split": manifest.split, "modality": manifest.modality, "encoder": manifest.encoder["name"]}
    columns = {name: pa.array([value] * table.num_rows, pa.string()) for name, value in labels.items()}
    return pa.table({**columns, **{name: table[name] for name in table.schema.names}})
