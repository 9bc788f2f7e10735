""" "Trained on dog, tested on puppy: zero-shot or not, and why", for pairs and for lists."""

import pytest

from sharelock_ray.concepts.audit import ConceptAudit, answer, audit
from sharelock_ray.concepts.concept import Concept, concepts_of
from sharelock_ray.concepts.relations import Rules


@pytest.fixture
def audited(wordnet):
    def run(seen: list[str], unseen: list[str], **rules) -> ConceptAudit:
        return audit(concepts_of(seen, "a", wordnet), concepts_of(unseen, "b", wordnet), wordnet, Rules(**rules))

    return run


class TestAPair:
    def test_that_is_related_is_not_zero_shot(self, audited, wnids):
        (puppy,) = audited(["dog"], ["puppy"]).unseen
        assert answer("dog", puppy) == [
            "Trained on dog, tested on puppy: not zero-shot.",
            f"puppy ({wnids['puppy']}) is a hyponym of dog ({wnids['dog']}), 1 step below it (hyponym).",
        ]

    def test_that_is_not_related_is_zero_shot(self, audited):
        (puppy,) = audited(["cat"], ["puppy"]).unseen
        assert answer("cat", puppy) == [
            "Trained on cat, tested on puppy: zero-shot. "
            "No rule relates them; the nearest seen concept is cat, 3 steps away."
        ]

    def test_outside_wordnet_says_so(self, audited):
        (pikachu,) = audited(["cat"], ["Pikachu"]).unseen
        (sentence,) = answer("cat", pikachu)
        assert sentence.endswith("zero-shot. WordNet does not relate them, and no name is shared.")


class TestNames:
    """The tiny WordNet has no efts: their names alone tell."""

    def test_that_end_with_a_name_of_the_other_side_are_evidence(self, audited):
        for seen, unseen in (("eft", "red eft"), ("red eft", "eft")):
            (found,) = audited([seen], [unseen], surface=True).unseen
            assert [(each.rule, each.seen, each.unseen) for each in found.evidence] == [("spaced", seen, unseen)]
            assert audited([seen], [unseen]).strictly_unseen

    def test_of_compounds_that_wordnet_knows_name_what_they_are(self, audited):
        assert audited(["dog"], ["sea dog"], surface=True).strictly_unseen
        assert not audited(["terrier"], ["Airedale terrier"], surface=True).strictly_unseen


class TestAList:
    def test_strictly_unseen_concepts_have_no_evidence(self, audited):
        found = audited(["dog", "bird"], ["puppy", "crane", "cat", "animal"])
        assert list(map(str, found.strictly_unseen)) == ["cat"]
        assert found.by_rule() == {"hyponym": 2, "hypernym": 1}

    def test_the_distance_of_each_is_known(self, audited):
        found = audited(["dog", "bird"], ["puppy", "cat", "Pikachu"])
        assert [(each.nearest, each.distance) for each in found.unseen] == [("dog", 1), ("dog", 2), (None, None)]

    def test_all_evidence_is_listed(self, audited, wordnet):
        """A tail is a part of a dog, and a flag, and a banner is named so too."""
        (flag,) = audited(["dog", "banner"], ["flag"]).unseen
        assert {each.rule for each in flag.evidence} == {"part", "shared_name"}

    def test_is_stored_and_read(self, audited):
        found = audited(["dog"], ["puppy"])
        assert ConceptAudit.model_validate(found.content()) == found

    def test_other_sources_add_evidence(self, wordnet, audited):
        (leak,) = audited(["dog"], ["puppy"]).unseen[0].evidence

        class Finder:
            def evidence(self, concept: Concept):
                return [leak.model_copy(update={"rule": "form"})]

        (found,) = audit([Concept(name="dog")], [Concept(name="puppy")], wordnet, Rules(), [Finder()]).unseen
        assert [each.rule for each in found.evidence] == ["hyponym", "form"]
