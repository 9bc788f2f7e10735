"""What WordNet knows of the words and phrases that hold a name: a killer whale is a whale, a hot dog is no dog.

The rules, for a compound that has meanings of its own:
    - It names whatever it is a kind of ("killer whale", "bullfrog").
    - A phrase also names its last word if both are near in WordNet, at most two steps below something common: "electric
      eel" and "Australian magpie" name the eel and the magpie, though they are none. "Sea lion", "guinea pig" and "hot
      dog" name nothing else. Nor do closed compounds, of which no reader hears the parts ("dragonfly", "pineapple").
    - Words before the last one name what they say ("dog collar", "horse cart"), except in names of animals and plants,
      which are given by likeness ("horse chestnut", "tiger lily"). Where homographs are told apart by `sense`, they
      name nothing.
A phrase that WordNet does not have names what its words name ("red barn dog").
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from sharelock_ray.concepts.concept import ENGLISH, Concept
from sharelock_ray.concepts.evidence import Evidence, Rule
from sharelock_ray.concepts.forms import Lexicon, Words, heads, name_words
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.surface import Mention, SurfaceIndex
from sharelock_ray.concepts.wordnet import WordNet, plain
from sharelock_ray.concepts.words import HYPHEN, tokens

_ORGANISM = "organism"
_NEAR = 2
_SHORTEST = 3


class NamesWithin:
    """Evidence that the name of a concept on one side is the last word of a name on the other ("red eft" and "eft").

    Equal names are left to `Relations`.
    """

    def __init__(self, seen: Sequence[Concept], unseen: Sequence[Concept], wordnet: WordNet, rules: Rules) -> None:
        self.by_sense = rules.homographs == "sense"
        names = [_Named(side, wordnet, rules) for side in (seen, unseen)]
        self.found: list[Evidence] = []
        """All of it: several seen concepts may name one that is unseen."""
        for here, there in (names, names[::-1]):
            for key in here.names:
                for other, rule, detail in self._within(key, here, there):
                    seen_key, unseen_key = (key, other) if here is names[0] else (other, key)
                    self.found.append(Evidence(rule=rule, seen=seen_key, unseen=unseen_key, detail=detail))
        self._first: dict[str, dict[Rule, Evidence]] = {}
        for each in self.found:
            self._first.setdefault(each.unseen, {}).setdefault(each.rule, each)

    def evidence(self, concept: Concept) -> list[Evidence]:
        """The first evidence of each rule about a concept of the unseen side."""
        return list(self._first.get(str(concept), {}).values())

    def _within(self, key: str, here: "_Named", there: "_Named") -> Iterator[tuple[str, Rule, str]]:
        for language, of in here.names[key].items():
            for name in of:
                for mention in there.index.mentions(name.replace("-", " "), language):
                    if rule := self._rule(name, language, mention, here.senses[key], there):
                        yield mention.concept, rule, f'"{name}" names {mention.concept}: "{mention.matched}"'

    def _rule(self, name: str, language: str, mention: Mention, senses: Sequence[str], there: "_Named") -> Rule | None:
        words, matched = name_words(name, language), name_words(mention.matched, language)
        if plain(name) in map(plain, there.names[mention.concept].get(language, ())):
            return None
        if matched == words and mention.rule != "spaced":
            both_known = senses and there.senses[mention.concept]
            return None if self.by_sense and both_known and mention.rule == "form" else mention.rule
        # Other languages have the noun first ("pesce rosso").
        is_last = language == ENGLISH and any(words[: at + 1][-len(matched) :] == matched for at in heads(words))
        if not is_last:
            return None
        return "hyphenated" if tokens(name)[-2:-1] == [HYPHEN] else "spaced"


class _Named:
    """Concepts by `str(concept)`: their names by language, with those of WordNet, their wnids, and their index."""

    def __init__(self, concepts: Sequence[Concept], wordnet: WordNet, rules: Rules) -> None:
        senses_of = Relations((), wordnet, rules).senses
        self.senses = {str(concept): senses_of(concept) for concept in concepts}
        self.names = {str(concept): dict(concept.all_names()) for concept in concepts}
        for key, of in self.names.items():
            lemmas = (lemma for wnid in self.senses[key] for lemma in wordnet[wnid].lemmas)
            of[ENGLISH] = tuple(dict.fromkeys((*of.get(ENGLISH, ()), *lemmas)))
        english = {key: of[ENGLISH] for key, of in self.names.items()}
        lexicon = wordnet_lexicon(english, self.senses, wordnet, by_sense=rules.homographs == "sense")
        self.index = SurfaceIndex(self.names, lexicon)


def surface_index(concepts: Sequence[Concept], wordnet: WordNet, rules: Rules) -> SurfaceIndex:
    """The index of all names of concepts, their own and those of WordNet, by `str(concept)`."""
    return _Named(concepts, wordnet, rules).index


def wordnet_lexicon(
    names: Mapping[str, Iterable[str]], senses: Mapping[str, Sequence[str]], wordnet: WordNet, by_sense: bool
) -> Lexicon:
    """What WordNet knows of words and phrases that hold a name, by the rules of this module.

    Args:
        names: English names by key of a concept.
        senses: wnids by key. A concept without any is named by every phrase that holds its name.
        by_sense: a form, too, names only its most frequent meaning: "glasses" are spectacles, not two of a glass.
    """
    inflections = Lexicon(wordnet.exceptions).inflections
    # By form, the keys of the concepts that it may name.
    keys: dict[Words, dict[str, None]] = {}
    for key, of in names.items():
        for name in of:
            for form in inflections(name_words(name)):
                keys.setdefault(form, {})[key] = None
    lemmas: dict[Words, list[str]] = {}
    for synset in wordnet.synsets.values():
        for lemma in synset.lemmas:
            lemmas.setdefault(name_words(lemma), []).append(synset.wnid)
    meaning = _Meaning(wordnet, by_sense)
    known: dict[Words, set[str]] = {}
    for phrase, meanings in lemmas.items():
        for part, is_head in _parts(phrase):
            for key in keys.get(part, ()):
                known.setdefault(phrase, set(keys.get(phrase, ())))
                if not senses[key] or meaning.names(meanings, senses[key], is_head, closed=len(phrase) == 1):
                    known[phrase].add(key)
    if by_sense:
        for form, owners in keys.items():
            if most := wordnet.senses(" ".join(form))[:1]:
                named = {key for key in owners if not senses[key] or most[0] in senses[key]}
                if len(named) < len(owners):
                    known.setdefault(form, set()).update(named)
    return Lexicon(
        wordnet.exceptions,
        frozenset(lemma[0] for lemma in lemmas if len(lemma) == 1),
        {" ".join(phrase): of for phrase, of in known.items()},
    )


class _Meaning:
    def __init__(self, wordnet: WordNet, by_sense: bool) -> None:
        self.wordnet, self.by_sense = wordnet, by_sense
        self._organisms = wordnet.senses(_ORGANISM)[:1]
        self.above = cache(wordnet.above)

    def names(self, compound: Sequence[str], part: Sequence[str], is_head: bool, closed: bool) -> bool:
        """Whether a compound names a concept whose name is a part of it, by the wnids that both may mean."""
        if any(wnid in self.above(meaning) for meaning in compound for wnid in part):
            return True
        if closed:
            return False
        if is_head:
            near = {above for wnid in part for above in self.near(wnid)}
            return any(not near.isdisjoint(self.near(meaning)) for meaning in compound)
        above = {wnid for meaning in compound for wnid in self.above(meaning)}
        return not self.by_sense and above.isdisjoint(self._organisms)

    def near(self, wnid: str) -> list[str]:
        return [above for above, steps in self.above(wnid).items() if steps <= _NEAR]


def _parts(lemma: Words) -> Iterator[tuple[Words, bool]]:
    """The names that may be within a lemma, and whether each is its head."""
    if len(lemma) == 1:
        yield from (((lemma[0][at:],), True) for at in range(1, len(lemma[0]) - _SHORTEST + 1))
        return
    last = {at + 1 for at in heads(lemma)}
    for start in range(len(lemma)):
        for end in range(start + 1, len(lemma) + 1):
            if end - start < len(lemma):
                yield lemma[start:end], end in last
