"""Adds to a complete feature set the rows of inputs that it first rejected.

A set is never rewritten: recovered rows make one more part, and the manifest, replaced in one step, names it. The
rejects of before stay where they are; those whose keys the new part holds count no more (`FeatureSet.rejects`).

A part is published only where none is, and says itself all that the manifest tells of it but for the seconds, so that
equal retries write equal bytes. So where one was killed before it had named its part, or several retry at once, the
next one names what is there, with its own seconds, and adds behind it what it has beyond that. As each looks again once
it has written the manifest, none is left with less than there are parts.
"""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, in_place_of, open_features
from sharelock_ray.features.manifest import MANIFEST, Part, totals
from sharelock_ray.features.schema import part_name, rows_schema, sort_columns
from sharelock_ray.features.writer import content, parquet

_EFFORT = "effort"


def recover(feature_set: FeatureSet, retried: FeatureSet) -> FeatureSet:
    """The feature set, as it is by now, with the rows of `retried`, which the same encoder made of its rejected inputs.

    May be repeated: rows that are there already are left out, and nothing is written where no others are left.

    Raises:
        RunError: a file that is no such part has the name of the next one.
    """
    while True:
        feature_set = open_features(feature_set.uri)
        index = max(part.index for part in feature_set.manifest.parts) + 1
        path = storage.join(feature_set.uri, part_name(index))
        there = storage.read_bytes(path) if storage.exists(path) else None
        data = _new_part(feature_set, retried) if there is None else there
        if data is None:
            return feature_set
        part = _recorded(feature_set, retried, index, path, data)
        if there is not None or storage.create_bytes(path, data):
            parts = [*feature_set.manifest.parts, part]
            grown = feature_set.manifest.model_copy(update=totals(parts))
            storage.write_json(storage.join(feature_set.uri, MANIFEST), grown.content())


def _new_part(feature_set: FeatureSet, retried: FeatureSet) -> bytes | None:
    """The file of the rows of `retried` whose keys `feature_set` has rejected; None where there are none."""
    rows = pa.concat_tables(retried.part(part.index) for part in retried.manifest.parts)
    rejected = pa.array(sorted(feature_set.rejected_keys), pa.string())
    rows = rows.filter(pc.is_in(rows["key"], value_set=rejected))
    if not rows.num_rows:
        return None
    effort = totals(retried.manifest.parts)
    told = {name: effort[name] for name in ("tokens", "truncated", "devices", "revisions")}
    rows = rows.sort_by(sort_columns(feature_set.manifest.modality))
    return parquet(rows.replace_schema_metadata({_EFFORT: json.dumps(told)}))


def _recorded(feature_set: FeatureSet, retried: FeatureSet, index: int, path: str, data: bytes) -> Part:
    """What the manifest is to tell of a part of recovered rows."""
    manifest = feature_set.manifest
    rows = pq.read_table(pa.BufferReader(data))
    told = (rows.schema.metadata or {}).get(_EFFORT.encode())
    fits = rows.schema.equals(rows_schema(manifest.modality, manifest.dim, manifest.dtype))
    if told is None or not fits or not set(rows["key"].to_pylist()) <= feature_set.rejected_keys:
        raise RunError(f"{path} is no part of rows that its set lacks: remove it and retry again")
    return Part(
        index=index,
        rejects=0,
        rejects_sha256=None,
        recovered=pc.sum(in_place_of(feature_set.rejects, rows["key"])).as_py(),
        **content(rows, data),
        **({"encoder_seconds": retried.manifest.encoder_seconds} | json.loads(told)),
    )
