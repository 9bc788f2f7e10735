"""`audit`: verifies feature sets against their manifests and inputs, and writes `audit.json`."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import ConfigDict

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.features.soundness import Audit, audit_split
from sharelock_ray.progress import Progress, say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows.inputs import Inputs, feature_sets
from sharelock_ray.workflows.timing import timed

_T = TypeVar("_T")
_R = TypeVar("_R")
# Below this number of shards, starting Ray takes longer than checking them.
_FEW = 64
_AUDIT = "audit.json"


class Audited(Config):
    """An audit and the digest of the feature set that it checked."""

    digest: str
    audit: Audit


class AuditRecord(Document):
    """`audit.json`: the last audit of each feature set, by its URI."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Audited]


def audit(recipe: Recipe, inputs: Inputs | None = None) -> list[Audit]:
    """Checks each feature set against its manifest, its inputs, which are read again, and the other modality's sets."""
    inputs = inputs or Inputs(recipe)
    record: dict[str, Audited] = {}
    audits: list[Audit] = []
    with timed(recipe, "audit"):
        for split in inputs.known_splits:
            sets = split.open()
            with Progress("audit", "inputs") as progress:
                found = audit_split(sets, split.source, _each, progress.update)
            if not any(each.problems for each in found):
                _match(sets, found)
            audits += found
            record |= {
                s.uri: Audited(digest=s.manifest.digest, audit=each) for s, each in zip(sets, found, strict=True)
            }
    storage.write_json(storage.join(recipe.output, _AUDIT), AuditRecord.model_validate(record).content())
    if not any(each.problems for each in audits):
        say(f"audit: {len(audits)} feature sets are sound: each input is in rows or rejects exactly once")
    return audits


def audit_once(recipe: Recipe, inputs: Inputs | None = None) -> None:
    """Audits the feature sets, unless an earlier audit found the same sets sound.

    Raises:
        RunError: a set is not sound.
    """
    inputs = inputs or Inputs(recipe)
    path = storage.join(recipe.output, _AUDIT)
    known = read_document(AuditRecord, path).__pydantic_extra__ if storage.exists(path) else {}
    sound = {uri: each.digest for uri, each in known.items() if not each.audit.problems}
    if all(sound.get(s.uri) == s.manifest.digest for s in feature_sets(inputs.known_splits)):
        say("audit: already done")
        return
    for each in audit(recipe, inputs):
        each.require()


def _each(function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """Yields `function` of each item in order: on threads if there are few items, otherwise in Ray tasks.

    A job on a cluster always uses tasks, since its nodes may be closer to the data.
    """
    if len(items) > _FEW or os.environ.get("RAY_ADDRESS"):
        from sharelock_ray.engine.tasks import each

        yield from each("audit", function, items)
    else:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(function, items)


def _match(sets: Sequence[FeatureSet], audits: Sequence[Audit]) -> None:
    """Counts the keys that each set of a split shares with all sets of the other modality, if there are any."""
    for feature_set, found in zip(sets, audits, strict=True):
        others = [s for s in sets if s.manifest.modality != feature_set.manifest.modality]
        if not others:
            continue
        found.matched = len(set(feature_set.keys).intersection(*(other.keys for other in others)))
        # For tars without images or without captions, one side has only rejects.
        if not found.matched and all(s.manifest.rows for s in (feature_set, *others)):
            found.problems.append("no key is also in the sets of the other modality")
