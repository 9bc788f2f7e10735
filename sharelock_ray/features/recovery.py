"""Adds to a complete feature set the rows of inputs that it first rejected.

A set is never rewritten: recovered rows make one more part, and the manifest, replaced in one step, names it. The
rejects of before stay where they are; those whose keys the new part holds count no more (`FeatureSet.rejects`).
"""

import pyarrow as pa
import pyarrow.compute as pc

from sharelock_ray import storage
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import MANIFEST, Part, totals
from sharelock_ray.features.schema import part_name, sort_columns
from sharelock_ray.features.writer import content, publish_table


def recover(feature_set: FeatureSet, retried: FeatureSet) -> FeatureSet:
    """`feature_set` with the rows of `retried`, which the same encoder made of its rejected inputs.

    May be repeated: rows that are there already are left out, and nothing is written where no others are left.
    """
    rows = _new_rows(feature_set, retried)
    if not rows.num_rows:
        return feature_set
    manifest = feature_set.manifest
    index = max(part.index for part in manifest.parts) + 1
    data = publish_table(storage.join(feature_set.uri, part_name(index)), rows)
    rejects = feature_set.rejects
    effort = totals(retried.manifest.parts)
    part = Part(
        index=index,
        rejects=0,
        rejects_sha256=None,
        recovered=pc.sum(pc.is_in(rejects["key"], value_set=pc.unique(rows["key"]))).as_py(),
        **content(rows, data),
        **{name: effort[name] for name in ("encoder_seconds", "tokens", "truncated", "devices", "revisions")},
    )
    grown = manifest.model_copy(update=totals([*manifest.parts, part]))
    storage.write_json(storage.join(feature_set.uri, MANIFEST), grown.model_dump(mode="json"))
    return open_features(feature_set.uri)


def _new_rows(feature_set: FeatureSet, retried: FeatureSet) -> pa.Table:
    """Rows of `retried` that `feature_set` lacks, of keys that it has rejected, in the order of a part."""
    identity = [name for name, _ in sort_columns(feature_set.manifest.modality)]
    known = set(zip(*(feature_set.columns[name] for name in identity), strict=True))
    rejected = set(feature_set.rejects["key"].to_pylist())
    rows = pa.concat_tables(retried.part(part.index) for part in retried.manifest.parts)
    places = zip(*(rows[name].to_pylist() for name in identity), strict=True)
    wanted = [place[0] in rejected and place not in known for place in places]
    return rows.filter(pa.array(wanted, pa.bool_())).sort_by(sort_columns(feature_set.manifest.modality))
