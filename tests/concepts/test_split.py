"""Splits of concepts: what is removed, from which side and why; the same on any machine; refused if nothing is left."""

import itertools
from pathlib import Path

import pytest

from sharelock_ray import storage
from sharelock_ray.concepts.concept import Concept, concepts_of
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.split import ConceptSplit, read_split, split, split_list
from sharelock_ray.errors import RequestError, RunError


@pytest.fixture
def concepts(wordnet):
    def read(*names: str) -> list[Concept]:
        return concepts_of(names, "here", wordnet)

    return read


def names(concepts) -> list[str]:
    return [str(concept) for concept in concepts]


class TestASplit:
    def test_removes_related_unseen_concepts_with_evidence(self, concepts, wordnet, wnids):
        made = split(concepts("dog", "cat"), concepts("puppy", "crane", "machine"), wordnet, Rules())
        assert (names(made.seen), names(made.unseen)) == (["dog", "cat"], ["crane", "machine"])
        (removed,) = made.removed
        assert str(removed.concept) == "puppy"
        assert [each.detail for each in removed.evidence] == [
            f"puppy ({wnids['puppy']}) is a hyponym of dog ({wnids['dog']}), 1 step below it"
        ]

    def test_may_remove_seen_concepts_instead(self, concepts, wordnet):
        made = split(concepts("dog", "cat"), concepts("puppy", "machine"), wordnet, Rules(), remove="seen")
        assert (names(made.seen), names(made.unseen)) == (["cat"], ["puppy", "machine"])
        (removed,) = made.removed
        assert (str(removed.concept), removed.evidence[0].unseen) == ("dog", "puppy")

    def test_removes_from_either_side_what_shares_a_name(self, wordnet):
        seen, unseen = ([Concept(name=name) for name in of] for of in (("eft", "newt"), ("red eft", "a", "b")))
        for side, removed in (("unseen", "red eft"), ("seen", "eft")):
            made = split(seen, unseen, wordnet, Rules(surface=True), remove=side)
            assert [str(each.concept) for each in made.removed] == [removed]
            assert made.removed[0].evidence[0].rule == "spaced"

    def test_may_be_without_seen_concepts_beside_captions(self, concepts, wordnet):
        made = split([], concepts("dog", "cat"), wordnet, Rules(), has_corpus=True)
        assert (made.seen, names(made.unseen)) == ((), ["dog", "cat"])

    def test_asks_other_sources_of_evidence(self, concepts, wordnet):
        class Finder:
            def evidence(self, concept: Concept):
                found = Relations(concepts("dog"), wordnet, Rules()).evidence(Concept(name="puppy"))
                return found if concept.name == "crane" else []

        made = split(concepts("cat"), concepts("crane", "goose", "dog"), wordnet, Rules(), others=[Finder()])
        assert names(made.unseen) == ["goose", "dog"]

    def test_says_what_it_rests_on(self, concepts, wordnet):
        made = split(concepts("crane"), concepts("dog", "Pikachu"), wordnet, Rules())
        strict, outside, several = made.notes
        assert strict.startswith("homographs by string")
        assert outside == "1 concept is not in WordNet (Pikachu): kept by the names alone"
        assert several.startswith("1 concept is given by a name with several meanings (crane): all count")
        made = split(concepts("crane"), concepts("dog", "cat"), wordnet, Rules(homographs="sense"))
        assert made.notes[0].startswith("homographs by sense")
        assert "the most frequent one counts" in made.notes[1]

    @pytest.mark.parametrize(
        ("seen", "unseen", "message"),
        [
            (["dog"], ["puppy", "cat"], "leaves 1 unseen and 1 seen concepts, and needs two and one: 1 of the unseen"),
            ([], ["dog", "cat"], "there are no seen concepts"),
            (["dog"], [], "there are no unseen concepts"),
        ],
    )
    def test_with_too_few_concepts_is_refused(self, seen, unseen, message, wordnet):
        sides = ([Concept(name=name) for name in side] for side in (seen, unseen))
        with pytest.raises(RequestError, match=message) as error:
            split(*sides, wordnet, Rules())
        assert "\n" not in str(error.value)

    def test_without_a_seen_concept_left_is_refused(self, concepts, wordnet):
        with pytest.raises(RequestError, match="leaves 2 unseen and 0 seen concepts"):
            split(concepts("dog"), concepts("puppy", "cat"), wordnet, Rules(), remove="seen")


class TestOfOneList:
    NAMES = ("dog", "cat", "goose", "crane", "machine", "flag", "puppy", "bird", "Airedale", "sea dog")

    def test_no_two_sides_are_related(self, concepts, wordnet):
        for seed, side in itertools.product(range(20), ("seen", "unseen")):
            try:
                made = split_list(concepts(*self.NAMES), 0.5, seed, wordnet, Rules(), side)
            except RequestError:
                continue
            relations = Relations(made.seen, wordnet, Rules())
            assert not any(relations.evidence(concept) for concept in made.unseen)
            assert len(made.seen) + len(made.unseen) + len(made.removed) == 10

    def test_is_the_same_on_any_machine_and_in_any_order(self, concepts, wordnet):
        made = split_list(concepts(*self.NAMES), 0.5, 3, wordnet, Rules())
        assert made.hash8 == "8beb66c7"
        again = split_list(concepts(*reversed(self.NAMES)), 0.5, 3, wordnet, Rules())
        assert set(names(again.unseen)) == set(names(made.unseen))
        assert (made.fraction, made.seed) == (0.5, 3)
        others = {tuple(names(split_list(concepts(*self.NAMES), 0.5, s, wordnet, Rules()).unseen)) for s in (1, 3, 4)}
        assert len(others) > 1


class TestStored:
    def test_is_read_as_it_was_written(self, concepts, wordnet, tmp_path: Path):
        made = split(concepts("dog", "cat"), concepts("puppy", "crane", "machine"), wordnet, Rules())
        path = str(tmp_path / "split.json")
        storage.write_json(path, made.content())
        assert read_split(path) == made
        assert read_split(path).hash8 == made.hash8

    def test_a_missing_or_damaged_one_is_one_line(self, tmp_path: Path):
        with pytest.raises(RequestError, match="no split of concepts at"):
            read_split(str(tmp_path / "none.json"))
        (tmp_path / "bad.json").write_text("{}")
        with pytest.raises(RunError, match="make it again with `sharelock concepts split`"):
            read_split(str(tmp_path / "bad.json"))

    def test_another_content_has_another_hash(self, concepts, wordnet):
        made = split(concepts("dog"), concepts("cat", "crane"), wordnet, Rules())
        other = split(concepts("dog"), concepts("cat", "goose"), wordnet, Rules())
        assert isinstance(made, ConceptSplit)
        assert made.hash8 != other.hash8
