"""Verifies feature sets: every input is in exactly one place, every part is as the manifest says."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.manifest import MANIFEST, Manifest, Part, inputs_with_rejects, totals
from sharelock_ray.features.schema import REJECTS, rows_schema
from sharelock_ray.features.writer import content_of_rows
from sharelock_ray.sources.sample import DUPLICATE_KEY, MISSING, Shard, Source


@dataclass
class Audit:
    """Result of an audit; the set is sound if `problems` is empty."""

    uri: str
    rows: int = 0
    keys: int = 0
    rejects: int = 0
    inputs: int | None = None
    matched: int | None = None
    """Keys that are also in the sets of the other modality; None if a set of the split is not sound."""
    problems: list[str] = field(default_factory=list)

    def require(self) -> "Audit":
        """Raises RunError with the first problem, if any."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise RunError(f"{self.uri}: {self.problems[0]}{more}: restore it, or delete the set and run extract again")
        return self


@dataclass
class _Found:
    """Content of a part: distinct keys of its rows, keys of its rejects, and keys of its duplicate-key rejects."""

    problems: list[str] = field(default_factory=list)
    rows: int = 0
    keys: pa.Array = field(default_factory=lambda: pa.array([], pa.large_string()))
    rejects: pa.Array = field(default_factory=lambda: pa.array([], pa.large_string()))
    repeats: pa.Array = field(default_factory=lambda: pa.array([], pa.large_string()))


@dataclass(frozen=True)
class _Checked:
    """The parts of a shard, the number of its inputs, and for each part the problems between both."""

    parts: list[_Found]
    inputs: int
    problems: list[list[str]]


_Parts = list[tuple[int, Part]]
_Item = tuple[Shard | None, _Parts]
Each = Callable[[Callable[[_Item], _Checked], Sequence[_Item]], Iterable[_Checked]]
"""Calls a function with each item in parallel, perhaps on other machines; yields the results in order."""


def audit(feature_set: FeatureSet, inputs: Iterable[str] | None = None) -> Audit:
    """Checks a feature set.

    Args:
        inputs: the key of every input, read from the source; None skips that comparison.
    """
    found = [_check(feature_set, part) for part in feature_set.manifest.parts]
    report = _report(feature_set, found)
    if inputs is not None:
        listed = Counter(inputs)
        report.inputs = listed.total()
        report.problems += _unaccounted(listed, _accounted(found))
    return report


def audit_split(
    sets: Sequence[FeatureSet], source: Source, each: Each, told: Callable[[int], None] = lambda inputs: None
) -> list[Audit]:
    """Checks the feature sets of a split against its source, shard by shard.

    Args:
        each: runs the checks of the shards.
        told: called with the number of inputs of each shard after its comparison.
    """
    shards = source.shards()
    listed = {shard.name: shard for shard in shards}
    # Parts of recovered rows belong to no one shard.
    work: dict[object, _Parts] = {}
    for place, feature_set in enumerate(sets):
        made = feature_set.manifest.inputs
        for part in feature_set.manifest.parts:
            of = made[part.index].name if part.index < len(made) else (place, part.index)
            work.setdefault(of, []).append((place, part))
    items = [(listed.get(str(of)), parts) for of, parts in work.items()]
    # A check needs only its own parts, so the manifests are sent without parts.
    bare = [FeatureSet(s.uri, s.manifest.model_copy(update={"parts": (), "inputs": ()})) for s in sets]
    found: list[dict[int, _Found]] = [{} for _ in sets]
    problems: list[list[str]] = [[] for _ in sets]
    inputs = 0
    for (_, parts), checked in zip(items, each(partial(_check_shard, source, bare), items), strict=True):
        for (place, part), of_part, wrong in zip(parts, checked.parts, checked.problems, strict=True):
            found[place][part.index] = of_part
            problems[place] += wrong
        inputs += checked.inputs
        told(checked.inputs)
    may_change = inputs_with_rejects(s.manifest for s in sets)
    reports = []
    for feature_set, of_parts, wrong in zip(sets, found, problems, strict=True):
        report = _report(feature_set, [of_parts[part.index] for part in feature_set.manifest.parts])
        other = feature_set.manifest.other_inputs(shards, may_change)
        report.problems += [f"the input shard {name} is {how}" for name, how in other.items()]
        report.problems += wrong
        report.inputs = inputs
        reports.append(report)
    return reports


def _check_shard(source: Source, sets: Sequence[FeatureSet], item: _Item) -> _Checked:
    """Checks the parts of a shard and that they contain each of its inputs; None stands for no shard."""
    shard, parts = item
    found = [_check(sets[place], part) for place, part in parts]
    if shard is None:
        return _Checked(found, 0, [[] for _ in parts])
    accounted = [_accounted([each]) for each in found]
    listed = Counter(source.keys_of(shard))
    if any(each != listed for each in accounted):
        # In a damaged shard, a listing without the contents may have more keys than can be read.
        listed = Counter(item.key for item in source.read(shard))
    return _Checked(found, listed.total(), [list(_unaccounted(listed, each)) for each in accounted])


def _report(feature_set: FeatureSet, found: Sequence[_Found]) -> Audit:
    """Combines the checks of all parts, in the manifest's order."""
    manifest = feature_set.manifest
    report = Audit(feature_set.uri, problems=[*_strays(feature_set), *(p for part in found for p in part.problems)])
    rejects = pa.chunked_array([each.rejects for each in found], pa.large_string())
    for part, of_part in zip(manifest.parts, found, strict=True):
        if part.recovered:
            # The rejects that its rows replace stay on record and no longer count.
            never = of_part.keys.filter(pc.invert(pc.is_in(of_part.keys, value_set=rejects.combine_chunks())))
            stand_no_more = pc.is_in(rejects, value_set=of_part.keys)
            rejects = rejects.filter(pc.invert(stand_no_more))
            name = part.name
            report.problems += [
                f"key {key!r} was never rejected, so {name} cannot have recovered it" for key in never.to_pylist()
            ]
            if not of_part.problems and (pc.sum(stand_no_more).as_py() or 0) != part.recovered:
                report.problems.append(f"{name} has other recovered than the manifest says")
    taken = pa.chunked_array([*(each.keys for each in found), *rejects.chunks], pa.large_string()).value_counts()
    twice = taken.field("values").filter(pc.greater(taken.field("counts"), 1))
    report.problems += [f"key {key!r} is in more than one place" for key in twice.to_pylist()]
    for name, of_parts in totals(manifest.parts).items():
        if getattr(manifest, name) != of_parts:
            report.problems.append(f"{name} of the manifest is {getattr(manifest, name)}, and {of_parts} of its parts")
    report.rows = sum(each.rows for each in found)
    report.keys = sum(len(each.keys.unique()) for each in found)
    report.rejects = len(rejects) + sum(len(each.repeats) for each in found)
    if not report.problems and (nothing := why_empty(feature_set)):
        report.problems.append(nothing)
    return report


def _accounted(found: Iterable[_Found]) -> Counter[str]:
    """Number of inputs by key. A recovered row counts once, though its reject is on record."""
    places: dict[str, int] = {}
    repeats: Counter[str] = Counter()
    for each in found:
        places |= dict.fromkeys([*each.keys.to_pylist(), *each.rejects.to_pylist()], 1)
        repeats.update(each.repeats.to_pylist())
    return Counter(places) + repeats


def why_empty(feature_set: FeatureSet) -> str | None:
    """Why a feature set without rows is not sound.

    None if it has rows, or if its inputs are sound but have nothing for its encoder (class folders have no captions).
    """
    if feature_set.manifest.rows:
        return None
    rejects = feature_set.rejects
    if not rejects.num_rows:
        return "it has no rows, since its inputs hold no samples"
    ((error, _),) = Counter(rejects["error"].to_pylist()).most_common(1)
    if error in MISSING:
        return None
    example = rejects.filter(pc.equal(rejects["error"], error)).slice(0, 1).to_pylist()[0]
    said = f"{example['key']}: {error}: {example['message']}"
    return f"it has no rows, since none of its {rejects.num_rows:,} inputs could be encoded ({said})"


def _strays(feature_set: FeatureSet) -> Iterator[str]:
    parts = feature_set.manifest.parts
    # A run stopped right after writing the manifest leaves staging, which the next run removes.
    known = {MANIFEST, "staging", "rejects"}.union(*(part.files for part in parts))
    found = storage.names(feature_set.uri)
    found += [f"rejects/{name}" for name in storage.names(storage.join(feature_set.uri, "rejects"))]
    # Desktops and NFS leave hidden files, such as `.DS_Store`.
    ours = (name for name in found if not name.rpartition("/")[2].startswith("."))
    return (f"{name} is not in the manifest" for name in ours if name not in known)


def _check(feature_set: FeatureSet, part: Part) -> _Found:
    """The content and the problems of a part."""
    name = part.name
    found = _Found()
    data = _verified(feature_set.uri, name, part.sha256, found.problems)
    if data is not None:
        rows = pq.read_table(pa.BufferReader(data))
        found.problems += _check_rows(feature_set.manifest, part, rows, data, found)
    rejects = REJECTS.empty_table()
    if part.rejects_sha256:
        data = _verified(feature_set.uri, f"rejects/{name}", part.rejects_sha256, found.problems)
        if data is None:
            return found
        rejects = pq.read_table(pa.BufferReader(data))
    if rejects.num_rows != part.rejects:
        found.problems.append(f"{name} has {rejects.num_rows} rejects, and the manifest says {part.rejects}")
    repeats = pc.equal(rejects["error"], DUPLICATE_KEY)
    found.rejects = _keys(rejects.filter(pc.invert(repeats)))
    found.repeats = _keys(rejects.filter(repeats))
    return found


def _check_rows(manifest: Manifest, part: Part, rows: pa.Table, data: bytes, found: _Found) -> Iterator[str]:
    name = part.name
    if not rows.schema.equals(rows_schema(manifest.modality, manifest.dim, manifest.dtype)):
        yield f"{name} has other columns, or embeddings of another width or type, than the manifest says"
        return
    values = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        yield f"{name} holds {bad} values that are not finite"
    # The SHA-256 is verified already.
    content = {"bytes": len(data), **content_of_rows(rows)}
    if other := [each for each, value in content.items() if value != getattr(part, each)]:
        yield f"{name} has other {', '.join(other)} than the manifest says"
    found.rows = rows.num_rows
    found.keys = _keys(rows)
    if manifest.modality == "language":
        found.keys = found.keys.unique()
        yield from (f"the captions of key {key!r} are not numbered from 0 on" for key in _misnumbered(rows))


def _keys(table: pa.Table) -> pa.Array:
    return table["key"].combine_chunks().cast(pa.large_string())


def _misnumbered(rows: pa.Table) -> list[str]:
    keys, numbers = rows["key"].to_pylist(), rows["caption_id"].to_pylist()
    right = [number for _, same in groupby(keys) for number, _ in enumerate(same)]
    return sorted({key for key, number, of_place in zip(keys, numbers, right, strict=True) if number != of_place})


def _unaccounted(listed: Counter[str], found: Counter[str]) -> Iterator[str]:
    for key in sorted(listed.keys() | found.keys()):
        if not found[key]:
            yield f"input {key!r} is in neither rows nor rejects"
        elif not listed[key]:
            yield f"key {key!r} is of no input"
        elif listed[key] != found[key]:
            yield f"of {listed[key]} inputs with key {key!r}, {found[key]} are in rows or rejects"


def _verified(folder: str, name: str, sha256: str, problems: list[str]) -> bytes | None:
    try:
        data = storage.read_bytes(storage.join(folder, name))
    except FileNotFoundError:
        problems.append(f"{name} is missing")
        return None
    if storage.sha256(data) != sha256:
        problems.append(f"{name} is not what the manifest says (SHA-256 differs)")
        return None
    return data
