"""Classes of a data set are found on the sides of a split, in any order, or the split is refused in one line."""

import random

import pytest

from sharelock_ray.concepts.classes import class_sides
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.split import ConceptSplit, Removed
from sharelock_ray.errors import RequestError

SEEN = [Concept(name=f"00{i}.Seen_{i}") for i in range(10)]
UNSEEN = [Concept(name="dog", wnid="n02084071"), Concept(name="pig")]
GONE = [Concept(name="puppy")]
NAMES = ["pig", "puppy", *(f"Seen {i}" for i in range(10)), "n02084071"]


def split(**changes: object) -> ConceptSplit:
    fields = {
        "rules": Rules(),
        "wordnet": "3.0",
        "seen": tuple(SEEN),
        "unseen": tuple(UNSEEN),
        "removed": tuple(Removed(concept=each, evidence=()) for each in GONE),
    }
    return ConceptSplit.model_validate(fields | changes)


def test_classes_are_found_by_name_by_words_and_by_wnid() -> None:
    found = class_sides(split(), NAMES, "split.json")
    assert found.seen == tuple(range(2, 12))
    assert (found.unseen, found.removed, found.validation) == ((0, 12), (1,), ())


def test_validation_classes_are_a_fraction_of_the_seen_ones_whatever_the_order() -> None:
    found = class_sides(split(), NAMES, "split.json", 0.3)
    assert (len(found.seen), len(found.validation)) == (7, 3)
    assert sorted((*found.seen, *found.validation)) == list(range(2, 12))
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    again = class_sides(split(), shuffled, "split.json", 0.3)
    assert {shuffled[label] for label in again.validation} == {NAMES[label] for label in found.validation}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[1:], r"of these 12 classes: 1 of its concepts are no class \(pig\): make a split of the names"),
        ([*NAMES, "cow", "hen"], r"of these 15 classes: 2 classes are not in it \(cow, hen\)"),
        ([*NAMES, "pig"], r"cannot tell classes of one name apart \(pig\)"),
        ([f"class {i}" for i in range(13)], r"13 of its concepts are no class \(.*, …\) and 13 classes are not in it"),
    ],
)
def test_a_split_of_other_classes_is_refused_in_one_line(names: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        class_sides(split(), names, "split.json")
    assert str(error.value).startswith("the split split.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fraction", [0.1, 0.97])
def test_a_fraction_leaves_two_classes_to_validate_and_one_to_train_on(fraction: float) -> None:
    with pytest.raises(RequestError, match=r"validation_fraction` 0\.\d+ takes 10? of 10 seen classes"):
        class_sides(split(), NAMES, "split.json", fraction)
