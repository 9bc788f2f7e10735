"""Proves that a feature set is whole: every input in exactly one place, every part what the manifest says."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.manifest import keys_digest, totals
from sharelock_ray.features.schema import part_name


@dataclass
class Audit:
    """What was checked and what was found wrong; the set is sound where `problems` is empty."""

    uri: str
    rows: int = 0
    keys: int = 0
    rejects: int = 0
    inputs: int | None = None
    matched: int | None = None
    """Keys that the split's sets of the other modality have too."""
    problems: list[str] = field(default_factory=list)

    def require(self) -> "Audit":
        """Raises RunError with the first problem where there is any."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise RunError(f"{self.uri}: {self.problems[0]}{more}: delete the set and run extract again")
        return self


def audit(feature_set: FeatureSet, inputs: Iterable[str] | None = None) -> Audit:
    """Checks a feature set.

    Args:
        inputs: the key of every input sample, read anew from the source; None leaves that comparison out.
    """
    manifest = feature_set.manifest
    report = Audit(feature_set.uri)
    seen: set[str] = set()
    rejected_before: set[str] = set()
    expected = {part_name(part.index) for part in manifest.parts}
    found = {name for name in storage.names(feature_set.uri) if name.endswith(".parquet")}
    report.problems += [f"{name} is not in the manifest" for name in sorted(found - expected)]
    for part in manifest.parts:
        name = part_name(part.index)
        data = _verified(feature_set.uri, name, part.sha256, report)
        if data is None:
            continue
        table = pq.read_table(pa.BufferReader(data))
        values = table["embedding"].combine_chunks().flatten()
        bad = int(np.count_nonzero(~np.isfinite(values.to_numpy(zero_copy_only=False))))
        if bad:
            report.problems.append(f"{name} holds {bad} values that are not finite")
        keys = pc.unique(table["key"]).to_pylist()
        rejected: list[str] = []
        if part.rejects_sha256:
            reject_data = _verified(feature_set.uri, f"rejects/{name}", part.rejects_sha256, report)
            rejected = pq.read_table(pa.BufferReader(reject_data))["key"].to_pylist() if reject_data else []
        if table.num_rows != part.rows or len(rejected) != part.rejects or keys_digest(keys) != part.keys_sha256:
            report.problems.append(f"{name} has other rows, rejects or keys than the manifest says")
        if part.recovered:
            report.problems += [
                f"key {key!r} was never rejected, so {name} cannot have recovered it"
                for key in sorted(set(keys) - rejected_before)
            ]
            # Its rejects of before stay on record; of its captions, some may have been rows all the time.
            seen -= set(keys)
        places = table["key"].to_pylist() if manifest.modality == "vision" else keys
        report.problems += [f"key {key!r} is in more than one place" for key in _repeated(seen, places)]
        rejected_before.update(rejected)
        # One sample may be rejected for several of its captions, and a repeated key is rejected beside its row.
        seen.update(keys, rejected)
        report.rows += table.num_rows
        report.keys += len(keys)
        report.rejects += len(rejected) - part.recovered
    for name in ("rows", "keys", "rejects"):
        total, of_parts = getattr(manifest, name), totals(manifest.parts)[name]
        if total != of_parts:
            report.problems.append(f"the manifest says {total} {name}, and {of_parts} of its parts together")
    if inputs is not None:
        listed = set(inputs)
        report.inputs = len(listed)
        report.problems += [f"input {key!r} is in neither rows nor rejects" for key in sorted(listed - seen)]
        report.problems += [f"key {key!r} is of no input" for key in sorted(seen - listed)]
    return report


def _verified(folder: str, name: str, sha256: str, report: Audit) -> bytes | None:
    try:
        data = storage.read_bytes(storage.join(folder, name))
    except FileNotFoundError:
        report.problems.append(f"{name} is missing")
        return None
    if storage.sha256(data) != sha256:
        report.problems.append(f"{name} is not what the manifest says (SHA-256 differs)")
        return None
    return data


def _repeated(seen: set[str], keys: list[str]) -> list[str]:
    """Keys that are in `seen`, or more than once in `keys`."""
    counts = Counter(keys)
    return [key for key, count in counts.items() if count > 1 or key in seen]
