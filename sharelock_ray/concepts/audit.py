"""The audit of unseen concepts against seen ones: strictly unseen or not, and why."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

from sharelock_ray.concepts.captions import Captions
from sharelock_ray.concepts.compared import Threshold, Twins
from sharelock_ray.concepts.compounds import NamesWithin
from sharelock_ray.concepts.concept import ENGLISH, Concept
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.residual import Distance, Residual, residual
from sharelock_ray.concepts.wordnet import VERSION, WordNet
from sharelock_ray.config import Config
from sharelock_ray.documents import Document

_SHOWN = 5


class Finder(Protocol):
    """A source of evidence about one concept against all of the other side, such as `Relations`."""

    def evidence(self, concept: Concept) -> list[Evidence]: ...


class AuditedConcept(Config):
    """An unseen concept with the evidence against it.

    Args:
        nearest: the seen concept at the fewest steps in WordNet, whether or not a rule counts it as a leak.
        distance: these steps; None outside WordNet.
    """

    concept: Concept
    evidence: tuple[Evidence, ...] = ()
    nearest: str | None = None
    distance: int | None = None


class ConceptAudit(Document):
    """Which unseen concepts are strictly unseen after training on the seen ones, with evidence for the others."""

    schema_version: ClassVar[int] = 3

    rules: Rules
    wordnet: str
    seen: tuple[Concept, ...]
    unseen: tuple[AuditedConcept, ...]
    notes: tuple[str, ...] = ()
    residual: Residual | None = None
    similarity: Threshold | None = None
    """None if names were not compared, and in documents of version 1, as `twins`."""
    twins: Twins | None = None
    captions: Captions | None = None
    """Of training; None without a corpus, and in documents before version 3."""

    @property
    def strictly_unseen(self) -> tuple[Concept, ...]:
        """The unseen concepts without any evidence."""
        return tuple(each.concept for each in self.unseen if not each.evidence)

    def by_rule(self) -> dict[str, int]:
        """The number of unseen concepts with evidence of each rule, the most frequent first."""
        return dict(Counter(found.rule for each in self.unseen for found in each.evidence).most_common())


def audit(
    seen: Sequence[Concept],
    unseen: Sequence[Concept],
    wordnet: WordNet,
    rules: Rules,
    others: Iterable[Finder] = (),
    accuracy: Mapping[str, float] | None = None,
    images: Mapping[str, int] | None = None,
    chance: float = 0.0,
    distance: Distance = "steps",
    distance_of: Callable[[Concept], float | None] | None = None,
) -> ConceptAudit:
    """Audits each unseen concept.

    Args:
        others: more sources of evidence than WordNet and names.
        accuracy: of a model by unseen class, to estimate residual leakage.
        images: number of its answers by class.
        chance: accuracy of a random answer.
        distance: what the distance to the nearest seen concept is, which `distance_of` returns; for `steps`, WordNet
            has it.

    Raises:
        RequestError: as `residual`.
    """
    relations = Relations(seen, wordnet, rules)
    finders: list[Finder] = [relations, *others]
    if rules.surface and seen and unseen:
        finders.insert(1, NamesWithin(seen, unseen, wordnet, rules))

    def audited(concept: Concept) -> AuditedConcept:
        evidence = tuple(found for finder in finders for found in finder.evidence(concept))
        nearest, distance = relations.nearest(concept) or (None, None)
        name = None if nearest is None else str(nearest)
        return AuditedConcept(concept=concept, evidence=evidence, nearest=name, distance=distance)

    found = tuple(map(audited, unseen))
    return ConceptAudit(
        rules=rules,
        wordnet=VERSION,
        seen=tuple(seen),
        unseen=found,
        notes=notes([*seen, *unseen], relations),
        residual=None
        if accuracy is None
        else residual(
            [(str(each.concept), each.concept.name, each.concept.words, each.concept.wnid or "") for each in found],
            [each.distance if distance_of is None else distance_of(each.concept) for each in found],
            [bool(each.evidence) for each in found],
            accuracy,
            images=images,
            distance=distance,
            chance=chance,
        ),
    )


def answer(seen: str, audited: AuditedConcept) -> list[str]:
    """Whether a test on a concept is zero-shot, and why, in plain sentences.

    Args:
        seen: what was trained on, for the sentences.
    """
    start = f"Trained on {seen}, tested on {audited.concept}"
    if audited.evidence and all(each.rule == "pretraining" for each in audited.evidence):
        said = (f"{each.detail} ({each.rule})." for each in audited.evidence)
        return [f"{start}: zero-shot for the alignment, but not for the vision encoder.", *said]
    if audited.evidence:
        return [f"{start}: not zero-shot.", *(f"{each.detail} ({each.rule})." for each in audited.evidence)]
    if audited.distance is None:
        return [f"{start}: zero-shot. WordNet does not relate them, and no name is shared."]
    steps = f"{audited.distance} step{'s' if audited.distance > 1 else ''}"
    return [f"{start}: zero-shot. No rule relates them; the nearest seen concept is {audited.nearest}, {steps} away."]


def notes(concepts: Iterable[Concept], relations: Relations) -> tuple[str, ...]:
    """What the result rests on: concepts without an entry, and names with several meanings."""
    concepts = list(concepts)
    outside = [str(each) for each in concepts if not relations.senses(each)]
    # With all meanings, to see which names have several.
    several = [
        str(each)
        for each in concepts
        if each.wnid is None
        and any(len(relations.wordnet.senses(name)) > 1 for name in each.all_names().get(ENGLISH, ()))
    ]
    strict = relations.rules.homographs == "string"
    found = [
        "homographs by string: equal names are one concept, whatever they mean"
        if strict
        else "homographs by sense: equal names of different meanings are different concepts"
    ]
    if outside:
        found.append(f"{_listed(outside, 'not in WordNet')}: kept by the names alone")
    if several:
        taken = "all count" if strict else "the most frequent one counts"
        found.append(f"{_listed(several, 'given by a name with several meanings')}: {taken} (give wnids to choose)")
    return tuple(found)


def _listed(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names):,} {'concepts are' if len(names) > 1 else 'concept is'} {what} ({shown})"
