"""Concept separation: ImageNet-21k beyond ImageNet-1k against ImageNet-1k with all rules of WordNet."""

import time
from dataclasses import dataclass

from sharelock_ray.bench.timing import alternate, median_ratio
from sharelock_ray.concepts.audit import audit
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.standard import read_source
from sharelock_ray.concepts.wordnet import WordNet, open_wordnet

ALL_RULES = Rules(siblings=True)


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
