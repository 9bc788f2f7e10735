"""Which concepts a text names."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from sharelock_ray.concepts.forms import Lexicon
from sharelock_ray.concepts.surface import SCHEMA, SurfaceIndex

LEXICON = Lexicon(
    irregular={"mice": ("mouse",)},
    words={"gold", "fish", "goldfish"},
    known={
        "hot dog": (),
        "guide dog": {"dog"},
        "horse chestnut": {"chestnut"},
        "sea horse": {"sea horse"},
        "bullfrog": {"frog"},
        "dragonfly": (),
        "glasses": {"spectacles"},
    },
)
NAMES = {
    "dog": {"en": ("dog",), "de": ("Hund",), "zh": ("狗",), "ja": ("犬",)},
    "ant": {"en": ("ant",)},
    "cat": {"en": ("cat",), "ar": ("قطة",)},
    "car": {"en": ("car",)},
    "ear": {"en": ("ear",)},
    "mouse": {"en": ("mouse",)},
    "horse": {"en": ("horse",)},
    "chestnut": {"en": ("chestnut",)},
    "sea horse": {"en": ("sea horse",)},
    "goldfish": {"en": ("goldfish",)},
    "x-ray": {"en": ("x-ray",)},
    "frog": {"en": ("frog",)},
    "fly": {"en": ("fly",)},
    "glass": {"en": ("glass",)},
    "spectacles": {"en": ("spectacles", "glasses")},
    "bread": {"ja": ("パン",)},
    "gift": {"en": ("gift",)},
    "bird": {"th": ("นก",)},
}


@pytest.fixture(scope="module")
def index() -> SurfaceIndex:
    return SurfaceIndex(NAMES, LEXICON)


def named(index: SurfaceIndex, text: str) -> dict[str, tuple[str, str]]:
    return {each.concept: (each.rule, each.matched) for each in index.mentions(text)}


@pytest.mark.parametrize(
    ("text", "concept", "rule", "matched"),
    [
        ("a dog in snow", "dog", "form", "dog"),
        ("Two DOGS!", "dog", "form", "dogs"),
        ("(mice)", "mouse", "form", "mice"),
        ("my dog's bed", "dog", "possessive", "dog's"),
        ("my dog ’s bed", "dog", "possessive", "dog 's"),
        ("the dogs' beds", "dog", "possessive", "dogs'"),
        ("sea_horse", "sea horse", "form", "sea horse"),
        ("sea-horses", "sea horse", "hyphenated", "sea-horses"),
        ("a seahorse", "sea horse", "closed_compound", "seahorse"),
        ("gold fish", "goldfish", "spaced", "gold fish"),
        ("an X ray of it", "x-ray", "spaced", "x ray"),
        ("an X-ray of it", "x-ray", "form", "x-ray"),
        ("a mouse-grey coat", "mouse", "hyphenated", "mouse-grey"),
        ("guide dogs", "dog", "spaced", "guide dogs"),
        ("a guide-dog", "dog", "hyphenated", "guide-dog"),
        ("bullfrogs", "frog", "closed_compound", "bullfrogs"),
        ("horse chestnuts", "chestnut", "spaced", "horse chestnuts"),
        ("a barn dog", "dog", "form", "dog"),
        ("ein Hund", "dog", "translation", "hund"),
        ("一只狗在跑", "dog", "translation", "狗"),
        ("食パンを食べる", "bread", "translation", "パン"),
        ("والقطة", "cat", "translation", "والقطة"),
        ("wine glass", "glass", "form", "glass"),
        ("man with glasses", "spectacles", "form", "glasses"),
    ],
)
def test_a_concept_is_found_with_its_rule_and_evidence(
    index: SurfaceIndex, text: str, concept: str, rule: str, matched: str
) -> None:
    assert named(index, text).get(concept) == (rule, matched)


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("elephant", "ant"),
        ("caterpillar", "cat"),
        ("carpet", "car"),
        ("a pear", "ear"),
        ("dogma", "dog"),
        ("hot dogs", "dog"),
        ("HOT-DOG", "dog"),
        ("a seahorse", "horse"),
        ("a sea horse", "horse"),
        ("horse chestnut", "horse"),
        ("dragonflies", "fly"),
        ("by the sea, horse riding", "sea horse"),
        ("sea - horse", "sea horse"),
        ("man with glasses", "glass"),
        ("パンダ", "bread"),
        ("นก้", "bird"),
    ],
)
def test_what_only_looks_like_a_name_is_not_found(index: SurfaceIndex, text: str, concept: str) -> None:
    assert concept not in named(index, text)


def test_an_exempt_phrase_hides_nothing_else(index: SurfaceIndex) -> None:
    assert named(index, "a dog eats a hot dog") == {"dog": ("form", "dog")}


def test_each_concept_is_named_once_by_its_first_mention(index: SurfaceIndex) -> None:
    found = index.mentions("dogs, a cat and a dog")
    assert [(each.concept, each.word) for each in found] == [("dog", 0), ("cat", 2)]


def test_names_may_be_compared_within_a_language(index: SurfaceIndex) -> None:
    assert [each.concept for each in index.mentions("Gift", "de")] == []
    assert [each.concept for each in index.mentions("Gift")] == ["gift"]
    assert [each.concept for each in index.mentions("Hund und dog", "de")] == ["dog"]


def test_concepts_of_one_name_are_all_named() -> None:
    index = SurfaceIndex({"bird": {"en": ("crane",)}, "machine": {"en": ("crane",)}})
    assert [each.concept for each in index.mentions("cranes")] == ["bird", "machine"]


class TestColumns:
    TEXTS = ("a dog and cats", None, "nothing", "", "seahorse")

    def test_a_table_of_all_mentions(self, index: SurfaceIndex) -> None:
        found = index.find(pa.array(self.TEXTS))
        assert found.schema == SCHEMA
        assert found["row"].to_pylist() == [0, 0, 4]
        assert found["concept"].to_pylist() == ["dog", "cat", "sea horse"]

    def test_is_empty_if_nothing_is_named(self, index: SurfaceIndex) -> None:
        assert index.find([]).num_rows == index.find(["nothing"]).num_rows == 0

    def test_a_mask_of_the_texts(self, index: SurfaceIndex) -> None:
        np.testing.assert_array_equal(index.mask(self.TEXTS), [True, False, False, False, True])

    def test_the_keys_of_a_table_stay_with_the_mentions(self, index: SurfaceIndex) -> None:
        table = pa.table({"key": ["a", "b"], "caption_id": [0, 1], "text": ["no", "two dogs and a cat"]})
        found = index.find_in(table)
        assert found.column_names == ["key", "caption_id", "concept", "rule", "matched", "word"]
        assert found["key"].to_pylist() == ["b", "b"]

    def test_do_not_depend_on_what_was_read_before(self, index: SurfaceIndex) -> None:
        again = pickle.loads(pickle.dumps(SurfaceIndex(NAMES, LEXICON)))
        assert again.find(self.TEXTS).equals(index.find(self.TEXTS))
