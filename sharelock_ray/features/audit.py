"""Proves that a feature set is whole: every input in exactly one place, every part what the manifest says."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.manifest import MANIFEST, Manifest, Part, totals
from sharelock_ray.features.schema import REJECTS, part_name, rows_schema
from sharelock_ray.features.writer import content_of_rows
from sharelock_ray.sources.sample import DUPLICATE_KEY, MISSING


@dataclass
class Audit:
    """What was checked and what was found wrong; the set is sound where `problems` is empty."""

    uri: str
    rows: int = 0
    keys: int = 0
    rejects: int = 0
    inputs: int | None = None
    matched: int | None = None
    """Keys that the split's sets of the other modality have too; None where a set of the split is not sound."""
    problems: list[str] = field(default_factory=list)

    def require(self) -> "Audit":
        """Raises RunError with the first problem where there is any."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise RunError(f"{self.uri}: {self.problems[0]}{more}: restore it, or delete the set and run extract again")
        return self


@dataclass
class _Places:
    """Where keys are: as a sample's rows, or as a reject that stands. Inputs that repeat a key may be any number."""

    samples: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    rows: int = 0


def audit(feature_set: FeatureSet, inputs: Iterable[str] | None = None) -> Audit:
    """Checks a feature set.

    Args:
        inputs: the key of every input, read anew from the source; None leaves that comparison out.
    """
    manifest = feature_set.manifest
    report = Audit(feature_set.uri)
    report.problems += _strays(feature_set)
    places = _Places()
    for part in manifest.parts:
        report.problems += _check(feature_set, part, places)
    taken = places.samples + places.rejects
    report.problems += [f"key {key!r} is in more than one place" for key, count in taken.items() if count > 1]
    for name, of_parts in totals(manifest.parts).items():
        if getattr(manifest, name) != of_parts:
            report.problems.append(f"{name} of the manifest is {getattr(manifest, name)}, and {of_parts} of its parts")
    if inputs is not None:
        listed = Counter(inputs)
        report.inputs = listed.total()
        report.problems += _unaccounted(listed, Counter(dict.fromkeys(taken, 1)) + places.repeats)
    if not report.problems and (nothing := why_empty(feature_set)):
        report.problems.append(nothing)
    report.rows, report.keys = places.rows, len(places.samples)
    report.rejects = places.rejects.total() + places.repeats.total()
    return report


def why_empty(feature_set: FeatureSet) -> str | None:
    """Why a feature set has no rows, and is not sound.

    None where it has some, and where its inputs are sound and have nothing for its encoder, as class folders have no
    captions.
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
    # What a run that was stopped right after the manifest has staged, the next one removes.
    known = {MANIFEST, "staging", "rejects", *(part_name(part.index) for part in parts)}
    known |= {f"rejects/{part_name(part.index)}" for part in parts if part.rejects_sha256}
    found = storage.names(feature_set.uri)
    found += [f"rejects/{name}" for name in storage.names(storage.join(feature_set.uri, "rejects"))]
    return (f"{name} is not in the manifest" for name in found if name not in known)


def _check(feature_set: FeatureSet, part: Part, places: _Places) -> list[str]:
    """What is wrong with a part; what is in it is added to `places`."""
    name = part_name(part.index)
    problems: list[str] = []
    data = _verified(feature_set.uri, name, part.sha256, problems)
    if data is not None:
        rows = pq.read_table(pa.BufferReader(data))
        problems += _check_rows(feature_set.manifest, part, rows, data, places)
    rejects = REJECTS.empty_table()
    if part.rejects_sha256:
        data = _verified(feature_set.uri, f"rejects/{name}", part.rejects_sha256, problems)
        if data is None:
            return problems
        rejects = pq.read_table(pa.BufferReader(data))
    if rejects.num_rows != part.rejects:
        problems.append(f"{name} has {rejects.num_rows} rejects, and the manifest says {part.rejects}")
    for key, error in zip(rejects["key"].to_pylist(), rejects["error"].to_pylist(), strict=True):
        (places.repeats if error == DUPLICATE_KEY else places.rejects)[key] += 1
    return problems


def _check_rows(manifest: Manifest, part: Part, rows: pa.Table, data: bytes, places: _Places) -> Iterator[str]:
    name = part_name(part.index)
    if not rows.schema.equals(rows_schema(manifest.modality, manifest.dim, manifest.dtype)):
        yield f"{name} has other columns, or embeddings of another width or type, than the manifest says"
        return
    values = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        yield f"{name} holds {bad} values that are not finite"
    # Its SHA-256 is verified.
    found = {"bytes": len(data), **content_of_rows(rows)}
    keys = pc.unique(rows["key"]).to_pylist()
    if part.recovered:
        yield from (
            f"key {key!r} was never rejected, so {name} cannot have recovered it"
            for key in keys
            if key not in places.rejects
        )
        # Its rejects of before stay on record, and stand no more.
        found["recovered"] = sum(places.rejects.pop(key, 0) for key in keys)
    if other := [each for each, value in found.items() if value != getattr(part, each)]:
        yield f"{name} has other {', '.join(other)} than the manifest says"
    places.rows += rows.num_rows
    if manifest.modality == "language":
        places.samples.update(keys)
        yield from (f"the captions of key {key!r} are not numbered from 0 on" for key in _misnumbered(rows))
    else:
        places.samples.update(rows["key"].to_pylist())


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
