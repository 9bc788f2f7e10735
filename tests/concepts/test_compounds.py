"""What WordNet knows of the compounds that hold a name."""

from pathlib import Path

import pytest

from nouns import Noun, write_wordnet
from sharelock_ray.concepts.compounds import NamesWithin, surface_index
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.surface import SurfaceIndex
from sharelock_ray.concepts.wordnet import WordNet

NOUNS = {
    "organism": Noun("organism"),
    "animal": Noun("animal", ("organism",)),
    "plant": Noun("plant", ("organism",)),
    "fish": Noun("fish", ("animal",)),
    "soft fish": Noun("soft-finned_fish", ("fish",)),
    "eel": Noun("eel", ("soft fish",)),
    "knifefish": Noun("knifefish", ("soft fish",)),
    "electric eel": Noun("electric_eel", ("knifefish",)),
    "mammal": Noun("mammal", ("animal",)),
    "placental": Noun("placental", ("mammal",)),
    "carnivore": Noun("carnivore", ("placental",)),
    "canine": Noun("canine", ("carnivore",)),
    "dog": Noun("dog", ("canine",)),
    "guide dog": Noun("guide_dog", ("dog",)),
    "bulldog": Noun("bulldog", ("dog",)),
    "ungulate": Noun("ungulate", ("placental",)),
    "equine": Noun("equine", ("ungulate",)),
    "horse": Noun("horse", ("equine",)),
    "tree": Noun("tree", ("plant",)),
    "horse chestnut": Noun("horse_chestnut", ("tree",)),
    "sea horse": Noun("seahorse,sea_horse", ("fish",)),
    "food": Noun("food"),
    "hot dog": Noun("hot_dog", ("food",)),
    "collar": Noun("collar"),
    "dog collar": Noun("dog_collar", ("collar",)),
    "vehicle": Noun("vehicle"),
    "jaguar car": Noun("jaguar", ("vehicle",)),
    "jaguar": Noun("jaguar", ("carnivore",)),
    "optics": Noun("glasses,spectacles"),
    "glass": Noun("glass"),
}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    folder: Path = tmp_path_factory.mktemp("compounds")
    write_wordnet(folder, NOUNS)
    return WordNet(folder)


def index(wordnet: WordNet, *names: str, homographs: str = "string") -> SurfaceIndex:
    return surface_index(
        [Concept(name=name) for name in names], wordnet, Rules.model_validate({"homographs": homographs})
    )


@pytest.mark.parametrize("homographs", ["string", "sense"])
@pytest.mark.parametrize(
    ("text", "concept", "is_named"),
    [
        ("a guide dog", "dog", True),
        ("bulldogs", "dog", True),
        ("an electric eel", "eel", True),
        ("a barn dog", "dog", True),
        ("hot dogs", "dog", False),
        ("a sea horse", "horse", False),
        ("a seahorse", "horse", False),
        ("glass of water", "glass", True),
        ("his spectacles", "glasses", True),
    ],
)
def test_a_compound_names_what_it_is_a_kind_of_or_near_to(
    text: str, concept: str, is_named: bool, homographs: str, wordnet: WordNet
) -> None:
    assert bool(index(wordnet, concept, homographs=homographs).mentions(text)) == is_named


class TestHomographs:
    def test_by_string_all_words_count_but_those_of_plants_and_animals(self, wordnet: WordNet) -> None:
        assert index(wordnet, "dog").mentions("a dog collar")
        assert not index(wordnet, "horse").mentions("a horse chestnut")

    def test_by_sense_only_the_head_of_a_compound_counts(self, wordnet: WordNet) -> None:
        assert not index(wordnet, "dog", homographs="sense").mentions("a dog collar")
        assert index(wordnet, "collar", homographs="sense").mentions("a dog collar")

    def test_by_sense_a_form_names_its_most_frequent_meaning(self, wordnet: WordNet) -> None:
        cat = Concept(name="jaguar", wnid=wordnet.senses("jaguar")[1])
        assert surface_index([cat], wordnet, Rules()).mentions("a jaguar")
        assert not surface_index([cat], wordnet, Rules(homographs="sense")).mentions("a jaguar")
        assert index(wordnet, "glass").mentions("glasses")
        assert not index(wordnet, "glass", homographs="sense").mentions("glasses")

    def test_a_concept_outside_wordnet_is_found_by_its_name(self, wordnet: WordNet) -> None:
        assert index(wordnet, "labradoodle", homographs="sense").mentions("two labradoodles")


class TestNamesWithin:
    def rules(self, seen: str, unseen: str, wordnet: WordNet, homographs: str = "string") -> list[str]:
        one, other = Concept(name=seen), Concept(name=unseen)
        within = NamesWithin([one], [other], wordnet, Rules.model_validate({"homographs": homographs}))
        return [each.rule for each in within.evidence(other)]

    @pytest.mark.parametrize(
        ("seen", "unseen", "rules"),
        [
            ("electric eel", "eel", ["spaced"]),
            ("eel", "electric eel", ["spaced"]),
            ("red-barn dog", "dog", ["spaced"]),
            ("barn-dog", "dog", ["hyphenated"]),
            ("bulldog", "dog", ["closed_compound"]),
            ("labradoodles", "labradoodle", ["form"]),
            ("dog", "dog", []),
            ("hot dog", "dog", []),
            ("dog collar", "dog", []),
            ("dog food", "dog", []),
            ("eagle", "eel", []),
        ],
    )
    def test_the_last_word_of_a_name_counts(self, seen: str, unseen: str, rules: list[str], wordnet: WordNet) -> None:
        assert self.rules(seen, unseen, wordnet) == rules

    def test_the_evidence_says_which_name(self, wordnet: WordNet) -> None:
        unseen = Concept(name="electric eel")
        (found,) = NamesWithin([Concept(name="eel")], [unseen], wordnet, Rules()).evidence(unseen)
        assert (found.seen, found.unseen) == ("eel", "electric eel")
        assert found.detail == '"electric eel" names eel: "electric eel"'

    def test_other_languages_have_whole_names_only(self, wordnet: WordNet) -> None:
        fish, red = Concept(name="pesce rosso", language="it"), Concept(name="rosso", language="it")
        assert NamesWithin([fish], [red], wordnet, Rules()).evidence(red) == []
