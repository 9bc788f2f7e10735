"""What counts when words are compared."""

import pytest

from sharelock_ray.concepts.words import HYPHEN, fold, tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("PIÑATA", "pinata"),
        ("Straße", "STRASSE"),
        ("ﬁsh", "fish"),
        ("ＤＯＧ", "dog"),
        ("İstanbul", "istanbul"),
        ("smørbrød", "smorbrod"),
        ("больша́я", "большая"),
        ("ёж", "еж"),
        ("كَلْب", "كلب"),
        ("أسد", "اسد"),
        ("dog\u00adhouse", "doghouse"),
        ("カ\u3099", "ガ"),
    ],
)
def test_case_accents_and_variants_of_letters_do_not_count(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(("one", "other"), [("мой", "мои"), ("ガ", "カ"), ("हाथी", "हथी"), ("ñandu", "ñandus")])
def test_marks_that_make_another_letter_count(one: str, other: str) -> None:
    assert fold(one) != fold(other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog, a cat.", ["a", "dog", ",", "a", "cat", "."]),
        ("sea_horse", ["sea", "horse"]),
        ("sea-horse - blue", ["sea", HYPHEN, "horse", "-", "blue"]),
        ("dog’s", ["dog", "'", "s"]),
        ("St. Bernard", ["st", "bernard"]),
        ("black & white", ["black", "and", "white"]),
        ("हाथी और शेर", ["हाथी", "और", "शेर"]),
        ("金毛犬", ["金", "毛", "犬"]),
        ("ช้าง", ["ช้", "า", "ง"]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_words(text: str, words: list[str]) -> None:
    assert tokens(text) == words
