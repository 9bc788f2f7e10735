"""Relations in WordNet, and of names, between the concepts of a test and those of a training.

The ancestors of all listed concepts are collected once, so that another concept needs its own ancestors only: the time
grows with the sum of both sizes, not with their product.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from sharelock_ray.concepts.concept import ENGLISH, Concept
from sharelock_ray.concepts.evidence import Evidence, Rule, WordNetRule
from sharelock_ray.concepts.wordnet import Synset, WordNet, plain
from sharelock_ray.config import Config

Depth = Annotated[int, Field(ge=0)]
Side = Literal["seen", "unseen"]
_REVERSED: dict[WordNetRule, WordNetRule] = {
    "hyponym": "hypernym",
    "hypernym": "hyponym",
    "part": "whole",
    "whole": "part",
    "sibling": "sibling",
}


class Rules(Config):
    """Which relations of an unseen concept to a seen one count as leaks.

    Args:
        homographs: `string` is strict: equal names are one concept whatever they mean, and a name without a wnid has
            all its meanings. `sense` compares meanings: a name without a wnid has its most frequent one, and names
            count only for a concept that is not in WordNet.
        hypernyms: steps up from a seen concept to an unseen one that is more general; None is any, 0 is off.
        hyponyms: steps down from a seen concept to an unseen one that is a kind of it; None is any, 0 is off.
        parts: direct parts, members and substances, both ways.
        siblings: kinds of the same direct hypernym.
    """

    homographs: Literal["string", "sense"] = "string"
    hypernyms: Depth | None = None
    hyponyms: Depth | None = None
    parts: bool = True
    siblings: bool = False


class _Near(NamedTuple):
    """A meaning of a listed concept, and the steps to it. The smallest is the nearest, and the first in the list."""

    steps: int
    place: int
    wnid: str


class Relations:
    """Relations of any concept to those of a list.

    Args:
        listed: the concepts of one side.
        side: which one it is; `evidence` is asked about concepts of the other.
    """

    def __init__(self, listed: Sequence[Concept], wordnet: WordNet, rules: Rules, side: Side = "seen") -> None:
        self.listed, self.wordnet, self.rules, self.side = tuple(listed), wordnet, rules, side
        self._named: dict[tuple[str, str], list[int]] = {}
        # By synset, the nearest listed meaning below it (0 steps below itself), of which it is a part or a whole, or
        # that is directly one of its kinds.
        self._below: dict[str, _Near] = {}
        self._parts: dict[str, _Near] = {}
        self._wholes: dict[str, _Near] = {}
        self._kinds: dict[str, _Near] = {}
        for place, concept in enumerate(self.listed):
            for name in self._names(concept):
                self._named.setdefault(name, []).append(place)
            for wnid in self.senses(concept):
                synset = wordnet[wnid]
                _keep(self._below, wordnet.above(wnid), place, wnid)
                _keep(self._parts, dict.fromkeys(synset.parts, 1), place, wnid)
                _keep(self._wholes, dict.fromkeys(synset.wholes, 1), place, wnid)
                _keep(self._kinds, dict.fromkeys(synset.hypernyms, 1), place, wnid)
        up, down = (rules.hyponyms, rules.hypernyms) if side == "seen" else (rules.hypernyms, rules.hyponyms)
        self._most: dict[WordNetRule, int | None] = {
            "hyponym": up,
            "hypernym": down,
            "part": None if rules.parts else 0,
            "whole": None if rules.parts else 0,
            "sibling": None if rules.siblings else 0,
        }

    def senses(self, concept: Concept) -> tuple[str, ...]:
        """The wnids that stand for a concept under the rules; () if WordNet does not have it."""
        if concept.wnid is not None:
            return (concept.wnid,)
        found = next(filter(None, map(self.wordnet.senses, concept.all_names().get(ENGLISH, ()))), ())
        return found if self.rules.homographs == "string" else found[:1]

    def evidence(self, concept: Concept) -> list[Evidence]:
        """For each rule under which `concept` and a listed one are related, the nearest listed one."""
        senses = self.senses(concept)
        found = self._by_name(concept, senses)
        for rule, most in self._most.items():
            near, wnid = min(((near, wnid) for wnid in senses for near in self._near(rule, wnid)), default=(None, ""))
            if near is not None and (most is None or near.steps <= most):
                found.append(self._related(rule, concept, wnid, near))
        return found

    def nearest(self, concept: Concept) -> tuple[Concept, int] | None:
        """The listed concept at the fewest steps, up to a common ancestor and down; None outside WordNet."""
        found = [
            near._replace(steps=near.steps + steps)
            for wnid in self.senses(concept)
            for above, steps in self.wordnet.above(wnid).items()
            if (near := self._below.get(above))
        ]
        return (self.listed[min(found).place], min(found).steps) if found else None

    def _near(self, rule: WordNetRule, wnid: str) -> Iterator[_Near]:
        """Listed meanings of which a synset is the hyponym (part and so on), except itself."""
        synset = self.wordnet[wnid]
        found: Iterable[_Near]
        if rule == "hyponym":
            ancestors = self.wordnet.above(wnid).items()
            above = ((self._below.get(ancestor), steps) for ancestor, steps in ancestors if steps)
            found = (near._replace(steps=steps) for near, steps in above if near and not near.steps)
        elif rule == "hypernym":
            found = [self._below[wnid]] if wnid in self._below else []
        elif rule == "sibling":
            kinds = (self._kinds[parent] for parent in synset.hypernyms if parent in self._kinds)
            found = (near._replace(steps=2) for near in kinds)
        else:
            by = self._parts if rule == "part" else self._wholes
            found = [by[wnid]] if wnid in by else []
        return (near for near in found if near.wnid != wnid)

    def _related(self, rule: WordNetRule, concept: Concept, wnid: str, near: _Near) -> Evidence:
        unseen, seen = self.wordnet[wnid], self.wordnet[near.wnid]
        if self.side == "unseen":
            rule, unseen, seen = _REVERSED[rule], seen, unseen
        return self._evidence(rule, concept, near.place, self._detail(rule, unseen, seen, near.steps), near.steps)

    def _detail(self, rule: WordNetRule, unseen: Synset, seen: Synset, count: int) -> str:
        steps = f"{count} step{'s' if count > 1 else ''}"
        if rule == "hyponym":
            return f"{unseen} is a hyponym of {seen}, {steps} below it"
        if rule == "hypernym":
            return f"{unseen} is a hypernym of {seen}, {steps} above it"
        if rule == "sibling":
            parent = next(each for each in unseen.hypernyms if each in seen.hypernyms)
            return f"{unseen} and {seen} are both kinds of {self.wordnet[parent]}"
        part, whole = (unseen, seen) if rule == "part" else (seen, unseen)
        return f"{part} is a part, member or substance of {whole}"

    def _by_name(self, concept: Concept, senses: Sequence[str]) -> list[Evidence]:
        """At most one evidence of each rule: a meaning or an English name is shared, or a name of another language."""
        found: dict[Rule, Evidence] = {}
        for wnid in senses:
            if (near := self._below.get(wnid)) and not near.steps:
                detail = f"both mean {self.wordnet[wnid]}"
                found.setdefault("shared_name", self._evidence("shared_name", concept, near.place, detail, 0))
        for language, name in self._names(concept):
            rule: Rule = "shared_name" if language == ENGLISH else "translation"
            for place in self._named.get((language, name), ()) if rule not in found else ():
                theirs = self.senses(self.listed[place])
                if self.rules.homographs == "sense" and senses and theirs:
                    continue
                detail = f'both are named "{name}"' + ("" if language == ENGLISH else f" in the language {language}")
                if senses and theirs:
                    detail += f"; it means {self.wordnet[senses[0]]} and {self.wordnet[theirs[0]]}"
                found.setdefault(rule, self._evidence(rule, concept, place, detail))
        return list(found.values())

    def _evidence(self, rule: Rule, concept: Concept, place: int, detail: str, steps: int | None = None) -> Evidence:
        listed, other = str(self.listed[place]), str(concept)
        seen, unseen = (listed, other) if self.side == "seen" else (other, listed)
        return Evidence(rule=rule, seen=seen, unseen=unseen, detail=detail, distance=steps)

    def _names(self, concept: Concept) -> dict[tuple[str, str], None]:
        """Languages and names for comparison, with the words that WordNet has for a wnid, without repetition.

        The words for all meanings of a name are left out: "cat" and "goose" are both "bozo" in one of theirs.
        """
        names = [(language, name) for language, of in concept.all_names().items() for name in of]
        if concept.wnid is not None:
            names += [(ENGLISH, lemma) for lemma in self.wordnet[concept.wnid].lemmas]
        return dict.fromkeys((language, plain(name)) for language, name in names)


def _keep(by: dict[str, _Near], steps: Mapping[str, int], place: int, wnid: str) -> None:
    """Notes a listed meaning at the synsets to which it is the nearest so far."""
    for target, count in steps.items():
        near = _Near(count, place, wnid)
        by[target] = min(by.get(target, near), near)
