"""Captions that name unseen concepts, or those that WordNet relates to them."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

from sharelock_ray.concepts.captions import CaptionSearch, removed_rows, rows_sha256
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.corpus import SCHEMA
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.errors import RequestError

UNSEEN = (Concept(name="dog"), Concept(name="goose"), Concept(name="red eft"))


@dataclass(frozen=True)
class Texts:
    """A part with one caption per image."""

    texts: tuple[str, ...]
    first: int = 0

    def read(self) -> pa.Table:
        keys = [f"k{self.first + row}" for row in range(len(self.texts))]
        return pa.table([keys, pa.array([0] * len(keys), pa.int32()), list(self.texts)], schema=SCHEMA)


@pytest.fixture
def find(wordnet):
    def run(*texts: str, cut: int = 1, unseen=UNSEEN, **rules):
        search = CaptionSearch(unseen, wordnet, Rules(**rules))
        parts = [Texts(texts[:cut]), Texts(texts[cut:], cut)]
        return search.summary("store/captions", map(search, parts))

    return run


def removed(table: pa.Table) -> list[tuple[str, str, str]]:
    return [(row["key"], row["rule"], row["unseen"]) for row in table.to_pylist()]


def test_names_and_related_names_are_found_with_rule_and_evidence(find, wnids):
    found, table = find("two dogs", "a puppy", "a red barn", "red-efts", "a flag")
    assert removed(table) == [("k0", "form", "dog"), ("k1", "hypernym", "dog"), ("k3", "hyphenated", "red eft"),
                              ("k4", "whole", "dog")]  # fmt: skip
    assert table["detail"][1].as_py() == (
        f'"puppy" names puppy ({wnids["puppy"]}); '
        f"dog ({wnids['dog']}) is a hypernym of puppy ({wnids['puppy']}), 1 step above it"
    )
    assert (found.place, found.captions, found.named) == ("captions", 5, 4)
    assert [(each.concept, each.captions) for each in found.concepts] == [("dog", 3), ("red eft", 1)]
    assert found.concepts[0].by_rule == {"form": 1, "hypernym": 1, "whole": 1}


def test_the_rules_choose_what_counts(find):
    assert find("an animal", "an Airedale")[0].named == 2
    assert find("an animal", "an Airedale", hyponyms=0, hypernyms=1)[0].named == 0
    assert find("a flag", "a cat", parts=False)[0].named == 0
    assert find("a flag", "a cat", parts=False, siblings=True)[0].named == 1


def test_a_caption_counts_for_each_concept_that_it_names(find):
    found, table = find("an animal", "geese and a dog")
    assert [(each.concept, each.captions) for each in found.concepts] == [("dog", 2), ("goose", 2)]
    assert {row[0] for row in removed(table)} == {"k0", "k1"}


def test_each_concept_has_an_example_for_each_rule(find):
    found, _ = find("cats", "a dog", "dogs", "a puppy")
    (dog,) = found.concepts
    assert [(each.evidence.rule, each.text) for each in dog.examples] == [("form", "a dog"), ("hypernym", "a puppy")]
    assert found.evidence(UNSEEN[0])[0].detail == 'caption 0 of k1 says "a dog": "dog" names dog'
    assert found.evidence(UNSEEN[1]) == []


def test_the_result_is_the_same_however_captions_are_cut(find):
    texts = ("a puppy", "dogs", "two geese", "a terrier", "nothing")
    (one, first), (other, second) = find(*texts, cut=1), find(*texts, cut=3)
    assert first.equals(second)
    assert one.model_copy(update={"sha256": ""}) == other.model_copy(update={"sha256": ""})
    assert rows_sha256(removed_rows(first)) == rows_sha256(removed_rows(second.combine_chunks()))


def test_names_of_other_languages_count(find):
    hund = Concept(name="dog", names={"de": ("Hund",)})
    assert removed(find("ein Hund", "x", unseen=(hund, UNSEEN[1]))[1]) == [("k0", "translation", "dog")]


def test_a_corpus_without_captions_is_refused(find):
    with pytest.raises(RequestError, match="store/captions has no captions"):
        find()
