"""Relations of an unseen concept to seen ones: each rule, its depth, and homographs by string or by sense."""

import pytest

from sharelock_ray.concepts.concept import Concept, concepts_of
from sharelock_ray.concepts.relations import Relations, Rules


@pytest.fixture
def related(wordnet, wnids):
    """Evidence about unseen concepts, each given by the name of a noun or by its wnid in front."""

    def concept(name: str) -> Concept:
        return Concept(name=name.strip("!"), wnid=wnids[name.strip("!")] if name.endswith("!") else None)

    def find(seen: list[str], unseen: str, **rules) -> list:
        return Relations([concept(name) for name in seen], wordnet, Rules(**rules)).evidence(concept(unseen))

    return find


def rules_of(evidence) -> set[str]:
    return {each.rule for each in evidence}


class TestEachRule:
    def test_a_hyponym_is_below(self, related, wnids):
        (found,) = related(["cat", "dog"], "puppy")
        assert (found.rule, found.seen, found.unseen, found.distance) == ("hyponym", "dog", "puppy", 1)
        assert found.detail == f"puppy ({wnids['puppy']}) is a hyponym of dog ({wnids['dog']}), 1 step below it"

    def test_a_hypernym_is_above(self, related, wnids):
        (found,) = related(["airedale"], "dog")
        assert (found.rule, found.distance) == ("hypernym", 2)
        assert found.detail.startswith(f"dog ({wnids['dog']}) is a hypernym of Airedale ({wnids['airedale']}), 2 steps")

    def test_an_instance_is_a_kind(self, related):
        assert rules_of(related(["dog"], "laika")) == {"hyponym"}

    def test_a_synonym_shares_its_meaning(self, related, wnids):
        (found,) = related(["domestic dog"], "dog")
        assert (found.rule, found.distance, found.detail) == ("shared_name", 0, f"both mean dog ({wnids['dog']})")

    def test_a_part_and_its_whole(self, related, wnids):
        (part,) = related(["dog"], "flag!")
        (whole,) = related(["flag!"], "dog")
        assert (part.rule, whole.rule) == ("part", "whole")
        detail = f"flag ({wnids['flag']}) is a part, member or substance of dog ({wnids['dog']})"
        assert part.detail == whole.detail == detail
        assert related(["dog"], "flag!", parts=False) == []

    def test_siblings_are_an_option(self, related, wnids):
        assert related(["puppy"], "terrier") == []
        (found,) = related(["puppy"], "terrier", siblings=True)
        assert (found.rule, found.distance) == ("sibling", 2)
        assert found.detail.endswith(f"are both kinds of dog ({wnids['dog']})")

    def test_unrelated_concepts_have_no_evidence(self, related):
        assert related(["cat"], "puppy") == []

    def test_the_nearest_seen_concept_is_named(self, related):
        (found,) = related(["animal", "dog", "terrier"], "airedale")
        assert (found.seen, found.distance) == ("terrier", 1)


class TestDepth:
    @pytest.mark.parametrize(("depth", "rules"), [(0, set()), (1, set()), (2, {"hyponym"}), (None, {"hyponym"})])
    def test_of_hyponyms(self, depth, rules, related):
        assert rules_of(related(["dog"], "airedale", hyponyms=depth, hypernyms=0)) == rules

    @pytest.mark.parametrize(("depth", "rules"), [(0, set()), (2, set()), (3, {"hypernym"}), (None, {"hypernym"})])
    def test_of_hypernyms(self, depth, rules, related):
        assert rules_of(related(["airedale"], "animal", hypernyms=depth, hyponyms=0)) == rules


class TestHomographs:
    def test_by_string_equal_names_are_one_concept(self, related, wnids):
        (found,) = related(["lifting crane!"], "crane!")
        assert found.rule == "shared_name"
        bird, machine = (f"crane ({wnids[name]})" for name in ("crane", "lifting crane"))
        assert found.detail == f'both are named "crane"; it means {bird} and {machine}'

    def test_by_sense_they_are_not(self, related):
        assert related(["lifting crane!"], "crane!", homographs="sense") == []

    def test_by_string_a_name_has_all_its_meanings(self, related):
        assert rules_of(related(["bird"], "crane")) == rules_of(related(["machine"], "crane")) == {"hyponym"}

    def test_by_sense_a_name_has_its_most_frequent_one(self, related):
        assert rules_of(related(["bird"], "crane", homographs="sense")) == {"hyponym"}
        assert related(["machine"], "crane", homographs="sense") == []


class TestOutsideWordNet:
    @pytest.mark.parametrize("homographs", ["string", "sense"])
    def test_names_count_alone(self, homographs, wordnet):
        relations = Relations([Concept(name="Pokémon_card")], wordnet, Rules(homographs=homographs))
        (found,) = relations.evidence(Concept(name="pokémon card"))
        assert (found.rule, found.distance) == ("shared_name", None)
        assert relations.senses(Concept(name="pokémon card")) == ()
        assert relations.nearest(Concept(name="pokémon card")) is None


class TestOtherLanguages:
    def test_a_translation_is_told_from_a_shared_name(self, wordnet):
        dog = Concept(name="dog", names={"de": ("Hund",), "it": ("cane",)})
        seen = concepts_of(["Katze", "Hund"], "here", wordnet, "de")
        (found,) = Relations(seen, wordnet, Rules()).evidence(dog)
        assert (found.rule, found.seen) == ("translation", "Hund")
        assert found.detail == 'both are named "hund" in the language de'

    def test_a_false_friend_is_another_word(self, wordnet):
        seen = concepts_of(["Gift"], "here", wordnet, "de")
        assert Relations(seen, wordnet, Rules()).evidence(Concept(name="gift")) == []

    def test_an_english_name_gives_the_meaning(self, wordnet):
        puppy = Concept(name="Welpe", language="de", names={"en": ("puppy",)})
        assert rules_of(Relations([Concept(name="dog")], wordnet, Rules()).evidence(puppy)) == {"hyponym"}


class TestFromTheOtherSide:
    def test_the_rule_says_what_the_unseen_concept_is(self, wordnet, wnids):
        relations = Relations([Concept(name="dog")], wordnet, Rules(), "unseen")
        (found,) = relations.evidence(Concept(name="puppy"))
        assert (found.rule, found.seen, found.unseen) == ("hypernym", "puppy", "dog")
        assert found.detail == f"dog ({wnids['dog']}) is a hypernym of puppy ({wnids['puppy']}), 1 step above it"

    def test_depths_are_those_of_the_unseen_concept(self, wordnet):
        rules = Rules(hyponyms=0)
        assert Relations([Concept(name="dog")], wordnet, rules, "unseen").evidence(Concept(name="puppy"))
        assert not Relations([Concept(name="puppy")], wordnet, rules, "unseen").evidence(Concept(name="dog"))

    def test_a_part_is_a_whole(self, wordnet):
        (found,) = Relations([Concept(name="dog")], wordnet, Rules(), "unseen").evidence(Concept(name="flag"))
        assert (found.rule, found.seen, found.unseen) == ("whole", "flag", "dog")


class TestNearest:
    def test_is_at_the_fewest_steps_up_and_down(self, wordnet):
        relations = Relations([Concept(name="goose"), Concept(name="airedale")], wordnet, Rules())
        assert relations.nearest(Concept(name="puppy")) == (Concept(name="airedale"), 3)
        assert relations.nearest(Concept(name="bird")) == (Concept(name="goose"), 1)

    def test_there_is_none_in_another_tree(self, wordnet):
        assert Relations([Concept(name="goose")], wordnet, Rules()).nearest(Concept(name="machine")) is None
