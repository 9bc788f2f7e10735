"""Which concepts a text names: the forms of all names in one automaton over words.

Whole words are compared, so "ant" is not in "elephant". In scripts without spaces (Chinese, Japanese, Thai) characters
are compared, so a name is found wherever its characters stand, except that Japanese katakana must not go on behind it:
パン (bread) is not in パンダ (panda). The meaning of a word in its sentence is not looked at; `Lexicon.known` says
which words and phrases name something else.

The automaton is a tree of words, read from the last one to the first: the last word of a name is most often a noun, and
rare, so that most texts are done after one look at each of their words.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sharelock_ray.concepts.concept import ENGLISH
from sharelock_ray.concepts.evidence import Rule
from sharelock_ray.concepts.forms import Lexicon, Words, forms, name_words
from sharelock_ray.concepts.words import APOSTROPHE, HYPHEN, is_katakana, tokens

SCHEMA = pa.schema(
    {"row": pa.int64(), "concept": pa.string(), "rule": pa.string(), "matched": pa.string(), "word": pa.int32()}
)
"""Columns of what `SurfaceIndex.find` finds."""
_ENTRIES = ""
"""Key, in a node of a tree, of what its words name; the other keys are the words before."""
_CACHED_WORDS = 1_000_000


class Mention(NamedTuple):
    """A concept that a text names.

    Args:
        concept: key of the concept.
        rule: how the text names it.
        matched: what names it, folded as in `sharelock_ray.concepts.words`.
        word: position of its first word, counted by spaces.
    """

    concept: str
    rule: Rule
    matched: str
    word: int


class SurfaceIndex:
    """Finds the concepts that texts name.

    Args:
        names: names by key of a concept and language.
    """

    def __init__(self, names: Mapping[str, Mapping[str, Iterable[str]]], lexicon: Lexicon | None = None) -> None:
        lexicon = lexicon or Lexicon()
        known = {name_words(phrase): frozenset(keys) for phrase, keys in lexicon.known.items()}
        self._names: _Tree = {}
        self._known: _Tree = {}
        for key, by_language in names.items():
            for language, of in by_language.items():
                for name in of:
                    hyphened = HYPHEN in tokens(name)
                    for form, rule in forms(name, language, lexicon).items():
                        if language != ENGLISH or key in known.get(form, (key,)):
                            _insert(self._names, form, _Name(key, language, rule, hyphened))
        for phrase, keys in known.items():
            for form in lexicon.inflections(phrase):
                if len(form) > 1:
                    _insert(self._known, form, keys)
                    continue
                for key in sorted(keys & names.keys() & known.get(form, keys)):
                    _insert(self._names, form, _Name(key, ENGLISH, "closed_compound", False))
        self._words = _Words(self._names)

    def mentions(self, text: str, language: str | None = None) -> list[Mention]:
        """The concepts that a text names, each once, in the order of their first mention.

        Args:
            language: compares names in this language only; None compares all.
        """
        words = text.replace("_", " ").split()
        # Most texts end here.
        if self._words.plain.issuperset(words):
            return []
        found = list(chain.from_iterable(map(self._words.__getitem__, words)))
        hits = list(_walk(self._names, found))
        if not hits:
            return []
        places: Sequence[int] = range(len(words))
        if len(found) != len(words):
            places = [place for place, word in enumerate(words) for _ in self._words[word]]
        return _Text(found, places).mentions(hits, list(_walk(self._known, found)), language)

    def find(self, texts: Iterable[str | None], language: str | None = None) -> pa.Table:
        """The concepts that texts name.

        Returns:
            a table of all mentions in the order of the texts: `row` of the text, and `concept`, `rule`, `matched` and
            `word` as in `Mention`.
        """
        rows: list[int] = []
        found: list[Mention] = []
        for row, text in enumerate(_strings(texts)):
            if text and (mentions := self.mentions(text, language)):
                rows += [row] * len(mentions)
                found += mentions
        columns = [rows, *([each[at] for each in found] for at in range(len(Mention._fields)))]
        return pa.table([pa.array(of, field.type) for of, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)

    def mask(self, texts: Iterable[str | None], language: str | None = None) -> np.ndarray:
        """Whether each text names any of the concepts, (N,) bool."""
        return np.fromiter((bool(text and self.mentions(text, language)) for text in _strings(texts)), bool)

    def find_in(self, table: pa.Table, column: str = "text", language: str | None = None) -> pa.Table:
        """The mentions in a column of a table, such as a part of a feature set of captions.

        Returns:
            as `find`, with the other columns of `table` (its keys) in place of `row`.
        """
        found = self.find(table[column], language)
        rows = table.drop_columns(column).take(found["row"])
        return pa.table(
            {
                **dict(zip(rows.column_names, rows.columns, strict=True)),
                **{name: found[name] for name in SCHEMA.names if name != "row"},
            }
        )


class _Name(NamedTuple):
    """What a form names: the key of a concept, and the name's language, rule and whether it has a hyphen."""

    key: str
    language: str
    rule: Rule
    hyphened: bool


_Tree = dict[str, Any]
_Span = tuple[int, int, Any]
"""Start and end, in tokens, of what a tree has, and its entry."""


class _Text:
    """The tokens of a text, with the positions of their words."""

    def __init__(self, tokens: Sequence[str], words: Sequence[int]) -> None:
        self.tokens, self.words = tokens, words

    def mentions(self, hits: Sequence[_Span], known: Sequence[_Span], language: str | None) -> list[Mention]:
        """The first of the hits, and then the longest, of each concept."""
        found: dict[str, Mention] = {}
        for start, end, name in sorted(hits, key=lambda hit: (hit[0], -hit[1])):
            if name.key in found or language not in (None, name.language):
                continue
            if name.language != ENGLISH:
                if not self._goes_on(end):
                    found[name.key] = Mention(name.key, name.rule, self._between(start, end), self.words[start])
                continue
            around = [of for of in known if of[0] <= start and end <= of[1] and end - start < of[1] - of[0]]
            if all(name.key in keys for _, _, keys in around):
                first = min([start, *(of[0] for of in around if of[1] == end)]) if around else start
                found[name.key] = self._english(name, first, end, "spaced" if first < start else name.rule)
        return list(found.values())

    def _english(self, name: _Name, start: int, end: int, rule: Rule) -> Mention:
        next_token = self._at(end)
        before, after = self._at(start - 1) == HYPHEN, next_token == HYPHEN
        if next_token == APOSTROPHE and self._at(end + 1) == "s":
            rule, end = "possessive", end + 2
        elif next_token == APOSTROPHE and self.tokens[end - 1].endswith("s") and not self._apart(end):
            rule, end = "possessive", end + 1
        elif before or after:
            rule, start, end = "hyphenated", start - 2 * before, end + 2 * after
        elif end - start > 1 and (within := HYPHEN in self.tokens[start:end]) != name.hyphened:
            rule = "hyphenated" if within else "spaced"
        return Mention(name.key, rule, self._between(start, end), self.words[start])

    def _goes_on(self, end: int) -> bool:
        """Whether a word of katakana goes on at `end`."""
        return is_katakana(self.tokens[end - 1]) and is_katakana(self._at(end)) and not self._apart(end)

    def _between(self, start: int, end: int) -> str:
        """The tokens from `start` to `end`, with spaces as in the text."""
        if end - start == 1:
            return self.tokens[start]
        gaps = (" " if at > start and self._apart(at) else "" for at in range(start, end))
        found = "".join(map("".join, zip(gaps, self.tokens[start:end], strict=True)))
        return found.replace(HYPHEN, "-")

    def _at(self, at: int) -> str:
        return self.tokens[at] if 0 <= at < len(self.tokens) else ""

    def _apart(self, at: int) -> bool:
        """Whether a space is before the token at `at`."""
        return self.words[at - 1] != self.words[at]


class _Words(dict[str, tuple[str, ...]]):
    """The tokens of words, kept for when a word comes again, and the set of those words that end no name."""

    def __init__(self, names: _Tree) -> None:
        self._names, self.plain = names, set[str]()

    def __missing__(self, word: str) -> tuple[str, ...]:
        if len(self) == _CACHED_WORDS:
            self.clear()
            self.plain.clear()
        found = self[word] = tuple(tokens(word))
        if self._names.keys().isdisjoint(found):
            self.plain.add(word)
        return found


def _insert(tree: _Tree, words: Words, entry: object) -> None:
    for word in reversed(words):
        tree = tree.setdefault(word, {})
    entries = tree.setdefault(_ENTRIES, [])
    if entry not in entries:
        entries.append(entry)


def _walk(tree: _Tree, tokens: Sequence[str]) -> Iterator[_Span]:
    """All that a tree has of the tokens; hyphens are passed over."""
    for last, node in enumerate(map(tree.get, tokens)):
        if node is None:
            continue
        at = last
        while node is not None:
            if _ENTRIES in node:
                for entry in node[_ENTRIES]:
                    yield at, last + 1, entry
            at -= 1
            if at > 0 and tokens[at] == HYPHEN:
                at -= 1
            node = node.get(tokens[at]) if at >= 0 else None


def _strings(texts: Iterable[str | None]) -> Iterable[str | None]:
    return texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else texts
