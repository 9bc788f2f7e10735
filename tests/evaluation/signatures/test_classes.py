"""A wrong order of names and memorised classes are found, and neither sound models nor weak ones are blamed."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from sharelock_ray.evaluation.signatures.classes import (
    best_assignment,
    memorised_classes,
    named_in,
    wrong_class_order,
)

CLASSES, EACH, WIDTH = 20, 10, 64
HALF = CLASSES // 2
NAMES = [f"name {i}" for i in range(CLASSES)]
LABELS = np.repeat(np.arange(CLASSES), EACH)


def units(rows: int, seed: int) -> torch.Tensor:
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, WIDTH))).float()
    return torch.nn.functional.normalize(values, dim=1)


PROTOTYPES = units(CLASSES, 0)


def images(noise: float = 0.5, labels: np.ndarray = LABELS) -> torch.Tensor:
    return torch.nn.functional.normalize(PROTOTYPES[torch.from_numpy(labels)] + noise * units(len(labels), 1), dim=1)


class TestWrongOrder:
    def test_an_order_that_is_off_by_one(self) -> None:
        found = wrong_class_order(images(), LABELS, PROTOTYPES.roll(1, 0), NAMES)
        assert found.present
        assert (found.accuracy.value, found.permuted.value, found.moved) == (0, 1, CLASSES)
        # The prompt of class 0 is now under label 1.
        assert found.examples["name 0"] == "name 1"
        assert found.statement == (
            "With other names for 20 classes (name 1 for name 0, name 2 for name 1, name 3 for name 2), the accuracy "
            "on 100 images is 100.0 %, not 0.0 %: check the order of `data.classes`."
        )

    def test_a_few_names_in_a_wrong_order(self) -> None:
        order = [1, 2, 0, *range(3, CLASSES)]
        found = wrong_class_order(images(), LABELS, PROTOTYPES[order], NAMES)
        assert found.present
        assert (found.moved, found.examples) == (3, {"name 0": "name 2", "name 1": "name 0", "name 2": "name 1"})

    def test_the_right_order(self) -> None:
        found = wrong_class_order(images(), LABELS, PROTOTYPES, NAMES)
        assert not found.present
        assert (found.accuracy.value, found.permuted.value, found.moved, found.images) == (1, 1, 0, 100)

    @pytest.mark.parametrize("seed", range(5))
    def test_guesses_are_no_wrong_order(self, seed: int) -> None:
        assert not wrong_class_order(units(len(LABELS), seed + 5), LABELS, PROTOTYPES, NAMES).present

    def test_one_prediction_for_all_images_of_unequal_classes_is_no_wrong_order(self) -> None:
        labels = np.array([0] * 120 + [1] * 40 + [2] * 40)
        found = wrong_class_order(PROTOTYPES[[1]].expand(200, -1), labels, PROTOTYPES, NAMES)
        assert found.permuted.value == 0.6
        assert not found.present

    def test_names_of_several_classes_are_one_target(self) -> None:
        names = ["same", "same", *NAMES[2:]]
        prototypes = PROTOTYPES[[0, 0, *range(2, CLASSES)]]
        shown = images(labels=np.where(LABELS == 1, 0, LABELS))
        found = wrong_class_order(shown, LABELS, prototypes, names)
        assert (found.present, found.accuracy.value) == (False, 1)

    def test_one_image_of_each_class_says_nothing(self) -> None:
        assert wrong_class_order(PROTOTYPES, np.arange(CLASSES), PROTOTYPES, NAMES) is None

    def test_one_name_says_nothing(self) -> None:
        assert wrong_class_order(images()[:EACH], LABELS[:EACH], PROTOTYPES[:1], NAMES[:1]) is None

    def test_the_best_assignment_is_that_of_all_permutations(self) -> None:
        generator = np.random.default_rng(0)
        truth, predicted = generator.integers(0, 5, (2, 60))

        def right(permutation: tuple[int, ...]) -> int:
            return sum(permutation[t] == p for t, p in zip(truth, predicted, strict=True))

        found = tuple(best_assignment(truth, predicted, 5).tolist())
        assert sorted(found) == list(range(5))
        assert right(found) == max(map(right, itertools.permutations(range(5))))

    def test_a_class_without_images_stays(self) -> None:
        truth = np.array([0, 0, 1, 1])
        assert best_assignment(truth, truth, 4).tolist() == [0, 1, 2, 3]


class TestMemorised:
    SEEN = np.arange(CLASSES) < HALF

    def test_unseen_classes_at_chance(self) -> None:
        prototypes = torch.cat([PROTOTYPES[:HALF], units(HALF, 9)])
        found = memorised_classes(images(), LABELS, prototypes, NAMES, self.SEEN)
        assert found.present
        assert (found.seen.value, found.seen_chance, found.unseen_chance) == (1, 0.1, 0.1)
        assert found.unseen.low <= 0.1
        assert (found.seen_classes, found.unseen_classes) == (HALF, HALF)
        assert found.statement.startswith(
            "Classes that training captions name are recognised, those that none names are not: 100.0 % among 10 seen "
        )

    def test_unseen_classes_that_are_recognised(self) -> None:
        found = memorised_classes(images(), LABELS, PROTOTYPES, NAMES, self.SEEN)
        assert not found.present
        assert found.unseen.value == 1

    def test_preferring_seen_classes_is_not_memorising(self) -> None:
        # A direction that all images share with the prompts of the seen classes: no unseen class is ever predicted.
        shared = torch.eye(WIDTH)[0]
        image = torch.nn.functional.normalize(images() + 2 * shared, dim=1)
        prototypes = PROTOTYPES.clone()
        prototypes[:HALF] += 3 * shared
        prototypes = torch.nn.functional.normalize(prototypes, dim=1)
        assert int((image @ prototypes.T).argmax(1).max()) < HALF
        assert not memorised_classes(image, LABELS, prototypes, NAMES, self.SEEN).present

    def test_a_model_that_knows_nothing_has_memorised_nothing(self) -> None:
        found = memorised_classes(images(), LABELS, units(CLASSES, 9), NAMES, self.SEEN)
        assert not found.present
        assert "are themselves near chance" in found.statement

    def test_few_classes_are_no_evidence(self) -> None:
        # Many images of a class say nothing about other classes: one of five is recognised.
        some = LABELS < HALF + 5
        prototypes = PROTOTYPES[[*range(HALF + 1), 12, 13, 14, 11, *range(15, CLASSES)]]
        found = memorised_classes(images()[some], LABELS[some], prototypes, NAMES, self.SEEN)
        assert found.unseen.low <= found.unseen_chance
        assert not found.present
        assert "there are too few of others to tell" in found.statement

    @pytest.mark.parametrize("seen", [0, 4, 16, 20])
    def test_without_five_classes_of_each_kind_there_is_nothing_to_compare(self, seen: int) -> None:
        assert memorised_classes(images(), LABELS, PROTOTYPES, NAMES, np.arange(CLASSES) < seen) is None


class TestNamedIn:
    @pytest.mark.parametrize(
        ("name", "text", "seen"),
        [
            ("hot dog", "A Hot Dog, with mustard", True),
            ("hot dog", "a hot-dog", True),
            ("hot dog", "a dog is hot", False),
            ("hot dog", "hotdog", False),
            ("hot dog", "so hot|dog", False),
            ("cat", "cats and catalogues", False),
            ("cat", "cat", True),
            ("Ägäischer Dackel", "ein ägäischer dackel!", True),
            ("café", "at the CAFÉ", True),
            ("St. Bernard", "the st bernard sleeps", True),
            ("", "anything", False),
            ("...", "... anything", False),
            ("dog", "", False),
        ],
    )
    def test_whole_words_in_order(self, name: str, text: str, seen: bool) -> None:
        # A bar separates texts: a name does not go on in the next one.
        texts = pa.chunked_array([text.split("|")])
        assert named_in([name, "another"], texts).tolist() == [seen, False]

    def test_names_that_begin_alike(self) -> None:
        texts = pa.chunked_array([["a big red", "red bus"], ["a big red car"]])
        assert named_in(["big", "big red bus", "big red car", "red", "car bus"], texts).tolist() == [1, 0, 1, 1, 0]

    def test_equals_a_search_in_each_text(self) -> None:
        generator = np.random.default_rng(0)
        words = np.array(list("abcdefgh"))
        texts = [" ".join(generator.choice(words, 4)) for _ in range(30)]
        names = [" ".join(generator.choice(words, 1 + i % 3)) for i in range(60)]
        expected = [any(f" {name} " in f" {text} " for text in texts) for name in names]
        assert named_in(names, pa.chunked_array([texts])).tolist() == expected

    def test_no_texts(self) -> None:
        assert named_in(["dog"], pa.chunked_array([], pa.string())).tolist() == [False]
