"""Splits of concepts into seen and unseen ones without leakage, stored as data."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

from sharelock_ray import storage
from sharelock_ray.concepts.audit import Finder, notes
from sharelock_ray.concepts.captions import Captions
from sharelock_ray.concepts.compared import Threshold, TwinImage, Twins
from sharelock_ray.concepts.compounds import NamesWithin
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.relations import Relations, Rules, Side
from sharelock_ray.concepts.wordnet import VERSION, WordNet
from sharelock_ray.config import Config, content_hash
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError

_LEAST_UNSEEN = 2
"""A test on one class cannot fail."""
_OTHER: dict[Side, Side] = {"seen": "unseen", "unseen": "seen"}


class Removed(Config):
    """A concept that is on neither side, and why."""

    concept: Concept
    evidence: tuple[Evidence, ...]


class ConceptSplit(Document):
    """Seen and unseen concepts, no two of which are related under the rules.

    Args:
        removed: concepts that were taken from `removed_from`.
        fraction: of one list that was drawn as unseen, with `seed`; None if both sides were given.
        similarity: how names were compared; None if they were not, and in documents of version 1, as `twins`.
        twins: what images say. `removed_images` are those to leave out of the side that loses concepts.
        captions: of training, of which those that name an unseen concept are left out; None if there was no corpus, and
            in documents before version 3.
    """

    schema_version: ClassVar[int] = 3

    rules: Rules
    wordnet: str
    seen: tuple[Concept, ...]
    unseen: tuple[Concept, ...]
    removed: tuple[Removed, ...] = ()
    removed_from: Side = "unseen"
    fraction: float | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()
    similarity: Threshold | None = None
    twins: Twins | None = None
    captions: Captions | None = None

    @property
    def removed_images(self) -> tuple[TwinImage, ...]:
        """Images of `removed_from` that the other side has too, by key, with evidence."""
        return self.twins.duplicates.images if self.twins and self.twins.duplicates else ()

    @property
    def hash8(self) -> str:
        """Hash of the content, which is the same on any machine."""
        return content_hash(self)


def split(
    seen: Sequence[Concept],
    unseen: Sequence[Concept],
    wordnet: WordNet,
    rules: Rules,
    remove: Side = "unseen",
    others: Iterable[Finder] = (),
    has_corpus: bool = False,
) -> ConceptSplit:
    """Removes the concepts of one side that are related to the other.

    Args:
        remove: the side that loses concepts: `unseen` keeps the training whole, `seen` keeps the test whole.
        others: more sources of evidence about a concept of that side than WordNet and names.
        has_corpus: the training has captions, and may be without seen concepts.

    Raises:
        RequestError: fewer than two unseen concepts, or no seen one, would be left.
    """
    sides: dict[Side, Sequence[Concept]] = {"seen": seen, "unseen": unseen}
    for side, concepts in sides.items():
        if not concepts and not (has_corpus and side == "seen"):
            raise RequestError(f"there are no {side} concepts: give at least one")
    kept = _OTHER[remove]
    relations = Relations(sides[kept], wordnet, rules, kept)
    finders: list[Finder] = [relations, *others]
    if rules.surface and seen and unseen:
        finders.insert(1, NamesWithin(seen, unseen, wordnet, rules, remove))
    left, removed = [], []
    for concept in sides[remove]:
        if evidence := tuple(found for finder in finders for found in finder.evidence(concept)):
            removed.append(Removed(concept=concept, evidence=evidence))
        else:
            left.append(concept)
    sides = {kept: sides[kept], remove: left}
    if len(sides["unseen"]) < _LEAST_UNSEEN or not (sides["seen"] or has_corpus):
        raise RequestError(_too_few(sides, removed, remove))
    return ConceptSplit(
        rules=rules,
        wordnet=VERSION,
        seen=tuple(sides["seen"]),
        unseen=tuple(sides["unseen"]),
        removed=tuple(removed),
        removed_from=remove,
        notes=notes([*seen, *unseen], relations),
    )


def split_list(
    concepts: Sequence[Concept],
    fraction: float,
    seed: int,
    wordnet: WordNet,
    rules: Rules,
    remove: Side = "unseen",
) -> ConceptSplit:
    """Draws a fraction of a list as unseen, and removes concepts as `split` does.

    Raises:
        RequestError: as `split`.
    """
    made = split(*draw(concepts, fraction, seed), wordnet, rules, remove)
    return made.model_copy(update={"fraction": fraction, "seed": seed})


def draw(concepts: Sequence[Concept], fraction: float, seed: int) -> tuple[list[Concept], list[Concept]]:
    """Draws a fraction of a list as unseen; returns the seen and the unseen ones.

    The draw depends on the names and the seed alone, not on the order of the list or on any library's generator.
    """
    order = sorted(map(str, concepts), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    drawn = set(order[: round(fraction * len(order))])
    seen = [each for each in concepts if str(each) not in drawn]
    return seen, [each for each in concepts if str(each) in drawn]


def read_split(uri: str) -> ConceptSplit:
    """Reads a stored split.

    Raises:
        RequestError: there is none, or a newer version of this package made it.
        RunError: it is damaged.
    """
    with storage.reading(uri, "split of concepts"):
        return read_document(ConceptSplit, uri, "make it again with `sharelock concepts split`")


def _too_few(sides: dict[Side, Sequence[Concept]], removed: Sequence[Removed], remove: Side) -> str:
    example = f", such as {removed[0].concept} ({removed[0].evidence[0].detail})" if removed else ""
    return (
        f"the split leaves {len(sides['unseen']):,} unseen and {len(sides['seen']):,} seen concepts, and needs two and "
        f"one: {len(removed):,} of the {remove} ones are removed{example}: give more concepts, or relax the rules"
    )
