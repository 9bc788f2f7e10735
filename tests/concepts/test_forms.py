"""The forms in which a text may write a name."""

import pytest

from sharelock_ray.concepts.forms import Lexicon, forms, name_words, written_names

LEXICON = Lexicon(
    irregular={"mice": ("mouse",), "dormice": ("dormouse",), "men-of-war": ("man-of-war",), "geese": ("goose",)},
    words={"gold", "fish", "goldfish", "scissors", "mouse"},
)


def written(name: str, language: str = "en") -> set[str]:
    return {" ".join(form) for form in forms(name, language, LEXICON)}


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("torch", "torches"),
        ("stomach", "stomachs"),
        ("canary", "canaries"),
        ("monkey", "monkeys"),
        ("wolf", "wolves"),
        ("knife", "knives"),
        ("giraffe", "giraffes"),
        ("potato", "potatoes"),
        ("piano", "pianos"),
        ("fisherman", "fishermen"),
        ("mouse", "mice"),
        ("field mouse", "field mice"),
        ("man-of-war", "men of war"),
        ("bird of paradise", "birds of paradise"),
    ],
)
def test_plurals(name: str, plural: str) -> None:
    assert plural in written(name)


@pytest.mark.parametrize(
    ("name", "singular"),
    [("dogs", "dog"), ("foxes", "fox"), ("canaries", "canary"), ("wolves", "wolf"), ("mice", "mouse")],
)
def test_the_singular_of_a_name_that_is_a_plural(name: str, singular: str) -> None:
    assert singular in written(name)


@pytest.mark.parametrize(("name", "wrong"), [("scissors", "scissor"), ("glass", "glas"), ("octopus", "octopu")])
def test_no_singular_of_what_is_none(name: str, wrong: str) -> None:
    assert wrong not in written(name)


def test_compounds_are_written_closed_and_with_a_space() -> None:
    assert forms("sea horse", "en", LEXICON)["seahorses",] == "closed_compound"
    assert forms("goldfish", "en", LEXICON)["gold", "fish"] == "spaced"
    # "den" is no known word.
    assert not any(len(form) > 1 for form in forms("goldden", "en", LEXICON))


def test_apostrophes_may_be_missing() -> None:
    assert {"lady ' s slipper", "ladys slipper", "ladys slippers"} <= written("lady’s slipper")


def test_a_language_without_rules_has_the_name_alone() -> None:
    assert written("Hund", "de") == {"hund"}


def test_articles_are_no_part_of_a_name() -> None:
    assert written("un pesce rosso", "it") == {"pesce rosso"}
    assert name_words("l'orso", "it") == ("orso",)
    assert name_words("a") == ("a",)


def test_what_is_written_together_with_a_noun() -> None:
    assert {"كلب", "الكلب", "والكلب"} <= written("كلب", "ar")
    assert {"개", "개가", "개를"} <= written("개", "ko")


def test_an_entry_of_a_list_may_have_several_names() -> None:
    assert [name.strip() for name in written_names("सुनहरी मछली (गोल्डफिश)")] == ["सुनहरी मछली", "गोल्डफिश"]
    assert written_names("シーズー、シー") == ["シーズー", "シー"]


def test_a_name_without_letters_has_no_form() -> None:
    assert forms("...", "en", LEXICON) == {}
