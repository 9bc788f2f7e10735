"""Captions that name an unseen concept, or one that WordNet relates to it: they are no training data for a test of it.

All names of the unseen concepts, and of the synsets that the rules relate to them, are looked for at once. A caption
with "puppy" is found for an unseen dog, since a dog is a hypernym of a puppy.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.concepts.compared import TwinImage
from sharelock_ray.concepts.compounds import surface_index
from sharelock_ray.concepts.concept import Concept, with_names
from sharelock_ray.concepts.corpus import CAPTION_ID, KEY, TEXT, Part
from sharelock_ray.concepts.evidence import Evidence, Rule
from sharelock_ray.concepts.relations import Relations, Rules, related, sentence
from sharelock_ray.concepts.wordnet import WordNet
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError

REMOVED = pa.schema(
    {
        KEY: pa.string(),
        CAPTION_ID: pa.int32(),
        "rule": pa.string(),
        "unseen": pa.string(),
        "matched": pa.string(),
        "detail": pa.string(),
    },
    metadata={"sharelock_ray.removed": "1"},
)
"""Columns of a table of removed images and captions, with its version; an image has no `caption_id`."""
_WORDS = 50


class NamingCaption(Config):
    """The first caption of a corpus that names a concept, or a related one, by a rule."""

    key: str
    caption_id: int
    text: str
    evidence: Evidence


class NamedConcept(Config):
    """An unseen concept in a corpus.

    Args:
        captions: number of those that name it or a related concept.
        by_rule: the same by rule; a caption may count for several.
        examples: one for each rule.
    """

    concept: str
    captions: int
    by_rule: dict[str, int]
    examples: tuple[NamingCaption, ...]


class Captions(Config):
    """What a corpus of captions says about unseen concepts.

    Args:
        place: name of the corpus.
        sha256: of its keys and texts.
        captions: their number.
        named: number of those that name any of the concepts, or a related one.
        words: the most frequent matches, with the number of captions.
        concepts: those that captions name; the others are strictly unseen in the corpus.
        removed: of a split: name of the table of the images and captions that are not trained on, beside the document.
        removed_sha256: of its rows, which is the same on any machine.
    """

    place: str
    sha256: str
    captions: int
    named: int
    words: dict[str, int]
    concepts: tuple[NamedConcept, ...]
    removed: str | None = None
    removed_sha256: str | None = None

    def evidence(self, concept: Concept) -> list[Evidence]:
        """The first caption of each rule that names a concept or a related one."""
        found = next((each for each in self.concepts if each.concept == str(concept)), None)
        return [each.evidence for each in found.examples] if found else []


class _Link(NamedTuple):
    """An unseen concept, by its place, of which a named one is evidence; no rule if the name is its own."""

    place: int
    rule: Rule | None
    steps: int
    detail: str


@dataclass
class _Named:
    """Captions of a part that name the same concepts by the same rules: their number, and the first of them."""

    captions: int
    first: tuple[str, int, str]
    """Key, number and text."""
    matched: dict[str, str]
    """By named concept."""


@dataclass
class FoundCaptions:
    """What was found in a part.

    Args:
        removed: rows of `REMOVED`.
    """

    captions: int
    sha256: str
    removed: pa.Table
    words: Counter[str] = field(default_factory=Counter)
    named: dict[tuple[tuple[str, Rule], ...], _Named] = field(default_factory=dict)


class CaptionSearch:
    """Looks for unseen concepts and related ones in parts of a corpus, in this process or another.

    Args:
        names: of a table, in other languages.
    """

    def __init__(
        self,
        unseen: Sequence[Concept],
        wordnet: WordNet,
        rules: Rules,
        names: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
    ) -> None:
        self.unseen = [str(concept) for concept in unseen]
        self._links: dict[str, list[_Link]] = {name: [_Link(at, None, 0, "")] for at, name in enumerate(self.unseen)}
        senses_of = Relations((), wordnet, rules).senses
        more: dict[str, None] = {}
        for at, concept in enumerate(unseen):
            senses = senses_of(concept)
            for wnid in senses:
                for other, (rule, steps) in related(wnid, wordnet, rules).items():
                    if other not in senses:
                        more[other] = None
                        detail = sentence(rule, wordnet[wnid], wordnet[other], steps, wordnet)
                        self._links.setdefault(other, []).append(_Link(at, rule, steps, detail))
        for links in self._links.values():
            links.sort(key=lambda link: (link.rule is not None, link.steps, link.place))
        others = [Concept(name=wnid, wnid=wnid) for wnid in more if wnid not in self.unseen]
        self._titles = {wnid: str(wordnet[wnid]) for wnid in more}
        self._index = surface_index([*unseen, *with_names(others, names or {})], wordnet, rules)

    def __call__(self, part: Part) -> FoundCaptions:
        """Searches a part."""
        table = part.read()
        keys, numbers, texts = (table[name].to_pylist() for name in (KEY, CAPTION_ID, TEXT))
        digest = hashlib.sha256()
        for key, number, text in zip(keys, numbers, texts, strict=True):
            digest.update(f"{key}\t{number}\t{text}\n".encode())
        rows: list[tuple[str, int, str, str, str, str]] = []
        found = FoundCaptions(len(table), digest.hexdigest(), REMOVED.empty_table())
        for key, number, text in zip(keys, numbers, texts, strict=True):
            if not text or not (mentions := self._index.mentions(text)):
                continue
            found.words.update({mention.matched for mention in mentions})
            kind = tuple(sorted((mention.concept, mention.rule) for mention in mentions))
            if kind in found.named:
                found.named[kind].captions += 1
            else:
                matched = {mention.concept: mention.matched for mention in mentions}
                found.named[kind] = _Named(1, (key, number, text), matched)
            for mention in mentions:
                link = self._links[mention.concept][0]
                detail = self._detail(mention.concept, link, mention.matched)
                rule = link.rule or mention.rule
                rows.append((key, number, rule, self.unseen[link.place], mention.matched, detail))
        found.removed = _removed(rows)
        return found

    def summary(self, place: str, parts: Iterable[FoundCaptions]) -> tuple[Captions, pa.Table]:
        """What all parts of a corpus say, in their order, and the captions to remove.

        Raises:
            RequestError: there is no caption.
        """
        total, named, words, digest = 0, 0, Counter[str](), hashlib.sha256()
        by_rule: list[Counter[str]] = [Counter() for _ in self.unseen]
        counts: Counter[int] = Counter()
        examples: list[dict[Rule, NamingCaption]] = [{} for _ in self.unseen]
        tables = [REMOVED.empty_table()]
        for part in parts:
            total += part.captions
            words += part.words
            digest.update(bytes.fromhex(part.sha256))
            tables.append(part.removed)
            for kind, each in part.named.items():
                named += each.captions
                links = ((key, rule, link) for key, rule in kind for link in self._links[key])
                rules = {(link.place, link.rule or rule): (key, link) for key, rule, link in links}
                counts.update(dict.fromkeys({at for at, _ in rules}, each.captions))
                for (at, rule), (key, link) in rules.items():
                    by_rule[at][rule] += each.captions
                    if rule not in examples[at]:
                        examples[at][rule] = self._example(at, rule, key, link, each)
        if not total:
            raise RequestError(f"{place} has no captions: give a corpus with some")
        concepts = [
            NamedConcept(
                concept=name,
                captions=counts[at],
                by_rule=dict(sorted(by_rule[at].items())),
                examples=tuple(examples[at][rule] for rule in sorted(examples[at])),
            )
            for at, name in enumerate(self.unseen)
            if counts[at]
        ]
        most = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:_WORDS]
        found = Captions(
            place=place.rstrip("/").rpartition("/")[2],
            sha256=digest.hexdigest(),
            captions=total,
            named=named,
            words=dict(most),
            concepts=tuple(concepts),
        )
        return found, pa.concat_tables(tables)

    def _example(self, at: int, rule: Rule, key: str, link: _Link, of: _Named) -> NamingCaption:
        caption, number, text = of.first
        detail = f'caption {number} of {caption} says "{text}": {self._detail(key, link, of.matched[key])}'
        evidence = Evidence(
            rule=rule,
            seen=f"{caption}/{number}",
            unseen=self.unseen[at],
            detail=detail,
            distance=link.steps if link.rule else None,
        )
        return NamingCaption(key=caption, caption_id=number, text=text, evidence=evidence)

    def _detail(self, key: str, link: _Link, matched: str) -> str:
        names = f'"{matched}" names {self._titles.get(key, key)}'
        return f"{names}; {link.detail}" if link.detail else names


def removed_rows(captions: pa.Table, images: Iterable[TwinImage] = ()) -> pa.Table:
    """The images and captions that are not trained on, as `data.concepts.removed` takes them: images come first."""
    of_images = [
        (each.key, None, each.evidence.rule, each.evidence.unseen, each.evidence.seen, each.evidence.detail)
        for each in images
    ]
    return pa.concat_tables([_removed(of_images), captions])


def rows_sha256(table: pa.Table) -> str:
    """SHA-256 of the rows of a table, whichever file holds them."""
    digest = hashlib.sha256()
    for batch in table.to_batches():
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def write_removed(uri: str, table: pa.Table) -> None:
    """Writes a table of removed images and captions as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def _removed(rows: Sequence[tuple[str, int | None, str, str, str, str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(REMOVED)
    arrays = [pa.array(of, kind) for of, kind in zip(columns, REMOVED.types, strict=True)]
    return pa.table(arrays, schema=REMOVED)
