"""Replaces parts of a complete feature set by better ones of the same inputs (`sharelock rejects retry`).

Better parts are published under names that contain their hash, then the manifest is replaced in one step, then the old
files are removed. A retry that is killed before it replaces the manifest leaves the set as it was.

Stores have no compare-and-swap: of two retries at once, the second may replace the manifest of the first, and so name
files that the first has removed. Each retry therefore reads the manifest again after it has removed files, and
publishes its parts again if files are missing.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from sharelock_ray import storage
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import MANIFEST, Part, read_manifest, totals
from sharelock_ray.features.schema import sort_columns
from sharelock_ray.features.writer import part_files

_Replacement = tuple[list[Part], dict[int, Part]]
"""Parts of the set, and by index the parts of the retry that replace them."""


def rejected_parts(feature_set: FeatureSet) -> list[Part]:
    """The parts to extract again: those with rejects other than duplicate keys.

    In an older set, parts of recovered rows may belong to any part with rejects, so all of these are extracted again.
    """
    rejected = feature_set.rejected_keys
    parts = [part for part in feature_set.manifest.parts if part.rejects]
    found = [part for part in parts if not rejected.isdisjoint(feature_set.rejects_of(part)["key"].to_pylist())]
    return parts if found and _recovered(feature_set) else found


def replace_parts(uri: str, retried: FeatureSet) -> FeatureSet:
    """Replaces parts of the set at `uri` by parts of `retried` that have fewer rejects and no row less. Idempotent.

    Args:
        retried: made of some of the shards by the same encoder.

    Returns:
        the set as it is now.

    Raises:
        RunError: a file is damaged.
    """
    retried_inputs = {each.name: each for each in retried.manifest.inputs}
    while True:
        feature_set = open_features(uri)
        manifest = feature_set.manifest
        found = [each for each in _replacements(feature_set, retried) if _is_better(feature_set, retried, *each)]
        if not found:
            return feature_set
        parts, inputs = {part.index: part for part in manifest.parts}, list(manifest.inputs)
        for old, new in found:
            for part in old:
                del parts[part.index]
            for index, part in new.items():
                parts[index] = _publish(uri, index, retried, part)
                inputs[index] = retried_inputs[inputs[index].name]
        update = {"inputs": tuple(inputs), **totals([parts[index] for index in sorted(parts)])}
        storage.write_json(storage.join(uri, MANIFEST), manifest.model_copy(update=update).content())
        remove_unnamed_parts(uri)


def remove_unnamed_parts(uri: str) -> None:
    """Removes part files that the manifest does not name, which killed retries leave."""
    # Listed before the manifest is read, so that files of a manifest written in between are kept.
    found = part_files(uri)
    for name in found - {name for part in read_manifest(uri).parts for name in part.files}:
        storage.remove(storage.join(uri, name))


def _recovered(feature_set: FeatureSet) -> list[Part]:
    return [part for part in feature_set.manifest.parts if part.recovered]


def _replacements(feature_set: FeatureSet, retried: FeatureSet) -> Iterator[_Replacement]:
    """One for each part; in an older set one for all parts with rejects, which also replaces the recovered rows."""
    manifest = feature_set.manifest
    made = {each.name: part for each, part in zip(retried.manifest.inputs, retried.manifest.parts, strict=True)}
    new = {index: made[each.name] for index, each in enumerate(manifest.inputs) if each.name in made}
    old = [part for part in manifest.parts if part.index in new]
    if not (recovered := _recovered(feature_set)):
        yield from (([part], {part.index: new[part.index]}) for part in old)
    elif {part.index for part in manifest.parts if part.rejects} <= new.keys():
        yield [*old, *recovered], new


def _is_better(feature_set: FeatureSet, retried: FeatureSet, old: Sequence[Part], new: dict[int, Part]) -> bool:
    names = storage.names(feature_set.uri)
    if any(part.name not in names for part in old):
        return True
    if sum(part.rejects for part in new.values()) >= sum(part.rejects - part.recovered for part in old):
        return False
    columns = [name for name, _ in sort_columns(feature_set.manifest.modality)]
    before, now = (
        pa.concat_tables(each.read(part, columns) for part in parts)
        for each, parts in ((feature_set, old), (retried, new.values()))
    )
    return not before.join(now, columns, join_type="left anti").num_rows


def _publish(uri: str, index: int, retried: FeatureSet, part: Part) -> Part:
    """Copies the files of a part of `retried` to the set at `uri`; the part as its manifest will name it."""
    renamed = part.model_copy(update={"index": index, "retried": True})
    for source, target in zip(part.files, renamed.files, strict=True):
        storage.write_bytes(storage.join(uri, target), retried.file_bytes(part, source))
    return renamed
