"""The forms in which a text may write a name: inflections, and compounds with spaces, with hyphens or closed."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType

from sharelock_ray.concepts.concept import ENGLISH
from sharelock_ray.concepts.evidence import Rule
from sharelock_ray.concepts.words import APOSTROPHE, fold, tokens

Words = tuple[str, ...]

_SHORTEST_PART = 3
# Ends of nouns and of their plurals, and the reverse. The plural in "s" is always tried.
_PLURALS = (("([sxzo]|ch|sh)$", r"\1es"), ("([^aeiou])y$", r"\1ies"), ("([^f])fe?$", r"\1ves"), ("man$", "men"))
_SINGULARS = (
    ("([^suio])s$", r"\1"),
    ("([sxzo]|ch|sh)es$", r"\1"),
    ("ies$", "y"),
    ("ves$", "f"),
    ("ves$", "fe"),
    ("men$", "man"),
)
_PREPOSITIONS = frozenset(
    {"of", "in", "on", "at", "to", "for", "by", "with", "from", "and", "de", "du", "des", "del", "di", "da"}
)
_ARTICLES = {
    "de": "der die das ein eine",
    "en": "a an the",
    "es": "el la los las un una",
    "fr": "le la les l un une",
    "it": "il lo la i gli le l un uno una",
    "pt": "o a os as um uma",
}
# What is written together with a noun: articles and prepositions of Arabic, particles of Korean.
_BEFORE = {"ar": ("", "ال", "وال", "بال", "كال", "فال", "لل", "و", "ب", "ل")}
_PARTICLES = "은 는 이 가 을 를 의 에 와 과 도 로 으로 에서 들 들이 들은 들을 에게 한테 만 이다"
_AFTER = {"ko": ("", *_PARTICLES.split())}


class Lexicon:
    """What is known of English words, beside what is regular.

    Args:
        irregular: singulars by plural, as `WordNet.exceptions` has them.
        words: nouns, in the singular. A name in one word is also looked for in two of them ("gold fish"), and a plural
            name in their singular.
        known: words and phrases that hold or equal a form of a name, with the keys of all concepts that they name.
            They name no other concept, nor do the words within: "hot dog" with no key does not name the dog, "killer
            whale" names the whale, and "glasses" names spectacles and not what a bottle is made of.
    """

    def __init__(
        self,
        irregular: Mapping[str, Sequence[str]] = MappingProxyType({}),
        words: Collection[str] = frozenset(),
        known: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self.words, self.known, self._irregular = words, known, irregular
        self._plurals: dict[Words, list[Words]] = {}
        for plural, singulars in irregular.items():
            for singular in singulars:
                self._plurals.setdefault(name_words(singular), []).append(name_words(plural))

    def inflections(self, name: Words) -> Iterator[Words]:
        """The name itself and all plurals that a writer may form; some are wrong, and then no text has them."""
        yield name
        yield from self._plurals.get(name, ())
        yield from _heads_replaced(name, self._plural)

    def singulars(self, name: Words) -> Iterator[Words]:
        """Singulars of a name that may be a plural; none if it is known to be a noun of its own."""
        return _heads_replaced(name, self._singular)

    def _plural(self, noun: str) -> Iterator[str]:
        yield from (plural[0] for plural in self._plurals.get((noun,), ()) if len(plural) == 1)
        yield noun + "s"
        yield from _replaced_ends(noun, _PLURALS)

    def _singular(self, noun: str) -> Iterator[str]:
        if noun not in self.words:
            yield from self._irregular.get(noun, ())
            yield from _replaced_ends(noun, _SINGULARS)


def name_words(name: str, language: str = ENGLISH) -> Words:
    """The words of a name, without punctuation and without an article in front."""
    found = [token for token in tokens(name) if token[0].isalnum() or token == APOSTROPHE]
    while len(found) > 1 and found[0] in (*_ARTICLES.get(language, "").split(), APOSTROPHE):
        del found[0]
    return tuple(found)


def written_names(entry: str) -> list[str]:
    """The names in an entry of a list: those between commas, and those in brackets."""
    return [part for part in re.split(r"[,;；、،/()（）]", entry) if any(map(str.isalnum, part))]


def forms(name: str, language: str, lexicon: Lexicon) -> dict[Words, Rule]:
    """Forms of a name, with the rule under which each names it; hyphens are left out.

    Only English is inflected. Names in other languages are looked for as they are, with the prefixes of Arabic and the
    particles of Korean.
    """
    words = name_words(name, language)
    if not words:
        return {}
    if language != ENGLISH:
        before, after = _BEFORE.get(language, ("",)), _AFTER.get(language, ("",))
        return {tuple(f"{one}{' '.join(words)}{two}".split()): "translation" for one, two in product(before, after)}
    spellings: dict[Words, Rule] = {words: "form"}
    if APOSTROPHE in words:
        spellings |= {tuple(word for word in name_words(fold(name).replace(APOSTROPHE, ""))): "form"}
    elif len(words) > 1:
        spellings["".join(words),] = "closed_compound"
    for cut in range(_SHORTEST_PART, len(words[-1]) - _SHORTEST_PART + 1):
        parts = words[-1][:cut], words[-1][cut:]
        if all(part in lexicon.words for part in parts):
            spellings.setdefault((*words[:-1], *parts), "spaced")
    found: dict[Words, Rule] = {}
    for singular in lexicon.singulars(words):
        spellings.setdefault(singular, "form")
    for spelling, rule in spellings.items():
        for form in lexicon.inflections(spelling):
            found.setdefault(form, rule)
    return found


def heads(name: Words) -> list[int]:
    """Positions of the words that a name may be a kind of: the last, and the one before a preposition."""
    before = next((at - 1 for at, word in enumerate(name) if at and word in _PREPOSITIONS), None)
    return [len(name) - 1] if before is None else [len(name) - 1, before]


def _heads_replaced(name: Words, forms_of: Callable[[str], Iterable[str]]) -> Iterator[Words]:
    for head in heads(name):
        yield from ((*name[:head], form, *name[head + 1 :]) for form in forms_of(name[head]))


def _replaced_ends(noun: str, ends: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (re.sub(end, other, noun) for end, other in ends if re.search(end, noun))
