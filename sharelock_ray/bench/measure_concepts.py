"""Concept separation: ImageNet-21k beyond ImageNet-1k against ImageNet-1k with all rules of WordNet; and captions
against ImageNet-1k with all surface rules."""

import random
import re
import statistics
import time
from dataclasses import dataclass

from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.concepts.audit import audit
from sharelock_ray.concepts.compounds import surface_index
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.standard import read_source
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet

ALL_RULES = Rules(siblings=True)
# Mean and standard deviation of log length for CC3M's captions, 10.3 ± 4.5 words (Sharma et al. 2018, table 2).
_MU, _SIGMA = 2.25, 0.42
_NAMED, _OTHER = 0.3, 0.1
_OTHER_WORDS = ("café", "São", "Müller's", "“quoted”", "naïve", "Москва", "犬が公園を走る", "हाथी", "3½", "#sunset")


@dataclass(frozen=True)
class WordNetRules:
    """CPU seconds by round: to read WordNet, to audit all classes, and to audit a sample pair by pair.

    Args:
        strict: number of strictly unseen classes.
        sample: number of unseen classes that the loop over pairs audits.
    """

    seen: int
    unseen: int
    sample: int
    read: list[float]
    audit: list[float]
    pairs: list[float]
    strict: int

    @property
    def ratio(self) -> float:
        """How many times as fast as the loop over all pairs, whose time grows with their number."""
        return median_ratio(self.pairs, self.audit) * self.unseen / self.sample


def measure_wordnet(wordnet: str | None, repeats: int, sample: int = 20) -> WordNetRules:
    """Measures the audit of 20,844 classes against 1,000.

    Args:
        wordnet: folder of the database files; None is the system's, or Debian's package.

    Raises:
        RequestError: WordNet cannot be read.
    """
    nouns = open_wordnet(wordnet)
    seen, unseen = (read_source(f"standard://{name}", nouns) for name in ("imagenet-1k", "imagenet-21k-minus-1k"))
    found: dict[str, int] = {}

    def read() -> float:
        start = time.process_time()
        WordNet(nouns.folder).senses("dog")
        return time.process_time() - start

    def all_at_once() -> float:
        start = time.process_time()
        found["strict"] = len(audit(seen, unseen, nouns, ALL_RULES).strictly_unseen)
        return time.process_time() - start

    def pair_by_pair() -> float:
        start = time.process_time()
        for concept in unseen[:: len(unseen) // sample][:sample]:
            _by_pairs(seen, concept, nouns)
        return time.process_time() - start

    taken = alternate({"read": read, "audit": all_at_once, "pairs": pair_by_pair}, repeats)
    return WordNetRules(len(seen), len(unseen), sample, taken["read"], taken["audit"], taken["pairs"], found["strict"])


def _by_pairs(seen: list[Concept], concept: Concept, wordnet: WordNet) -> int:
    return sum(bool(Relations([other], wordnet, ALL_RULES).evidence(concept)) for other in seen)


@dataclass(frozen=True)
class SurfaceRules:
    """CPU seconds by round: to build the index, to find all mentions, and to look for the names in a sample by one
    regular expression.

    Args:
        named: fraction of captions that name a concept.
        sample: number of captions that the regular expression searches.
    """

    captions: int
    concepts: int
    sample: int
    build: list[float]
    find: list[float]
    expression: list[float]
    named: float

    @property
    def captions_per_second(self) -> float:
        return self.captions / statistics.median(self.find)

    @property
    def ratio(self) -> float:
        """How many times as fast as the expression, which has only the names as they are and their plurals in "s"."""
        return median_ratio(self.expression, self.find) * self.captions / self.sample


def measure_captions(wordnet: str | None, captions: int, repeats: int, sample: int = 100) -> SurfaceRules:
    """Measures how fast the names of ImageNet-1k are found in captions of the length of CC3M's.

    The captions are cut from WordNet's definitions. A name is put into 30 % of them, and a word that is not ASCII into
    10 %.

    Raises:
        RequestError: WordNet cannot be read.
    """
    nouns = open_wordnet(wordnet)
    concepts = read_source("standard://imagenet-1k", nouns)
    names = [name for concept in concepts if concept.wnid for name in nouns[concept.wnid].lemmas]
    texts = _captions(nouns, names, captions)
    found: dict[str, float] = {}
    index = surface_index(concepts, nouns, ALL_RULES)
    expression = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})s?\b", re.IGNORECASE)

    def build() -> float:
        start = time.process_time()
        surface_index(concepts, nouns, ALL_RULES)
        return time.process_time() - start

    def find() -> float:
        start = time.process_time()
        table = index.find(texts)
        taken = time.process_time() - start
        found["named"] = len(set(table["row"].to_pylist())) / captions
        return taken

    def search() -> float:
        start = time.process_time()
        for text in texts[:sample]:
            expression.findall(text)
        return time.process_time() - start

    taken = alternate({"build": build, "find": find, "expression": search}, repeats)
    seconds = taken["build"], taken["find"], taken["expression"]
    return SurfaceRules(captions, len(concepts), sample, *seconds, found["named"])


def _captions(wordnet: WordNet, names: list[str], count: int) -> list[str]:
    draw = random.Random(0)
    words = [word for synset in wordnet.synsets.values() for word in re.findall(r"[\w'-]+", synset.definition)]
    texts = []
    for _ in range(count):
        length = max(3, round(draw.lognormvariate(_MU, _SIGMA)))
        at = draw.randrange(len(words) - length)
        text = words[at : at + length]
        for extra, share in ((names, _NAMED), (_OTHER_WORDS, _OTHER)):
            if draw.random() < share:
                text[draw.randrange(length)] = draw.choice(extra)
        texts.append(" ".join(text))
    return texts
