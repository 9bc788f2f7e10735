"""Zero-shot accuracy equals what plain loops count; classes of one name are one target, and all other ties lose."""

import io

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sharelock_ray.evaluation import ranks
from sharelock_ray.evaluation.tasks.zero_shot import any_class_ranks, class_ranks, ensemble, zero_shot

NAMES = [f"class {i}" for i in range(12)]


def data(images: int = 200, classes: int = 12, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Images near, but not too near, to the prototypes of their classes; the last two classes have none."""
    generator = np.random.default_rng(seed)
    prototypes = generator.normal(size=(classes, 16))
    labels = generator.integers(0, classes - 2, images)
    images = prototypes[labels] + 1.5 * generator.normal(size=(images, 16))
    return *(torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, prototypes)), labels


def counted(names: list[str] = NAMES, candidates: int = 12) -> tuple[list[bool], list[bool]]:
    """Top-1 and top-5 hits among the first classes, by sorting each image's names in plain Python."""
    images, prototypes, labels = data()
    first, five = [], []
    for image, label in zip(images.tolist(), labels, strict=True):
        near: dict[str, float] = {}
        for name, prototype in list(zip(names, prototypes.tolist(), strict=True))[:candidates]:
            near.setdefault(name, sum(a * b for a, b in zip(image, prototype, strict=True)))
        order = sorted(near, key=lambda name: -near[name])
        first.append(order[0] == names[label])
        five.append(names[label] in order[:5])
    return first, five


def test_accuracies_equal_plain_loops() -> None:
    images, prototypes, labels = data()
    results = zero_shot(images, labels, prototypes, NAMES)
    # The last two classes have no images.
    assert [found.candidate_set for found in results] == ["present", "all"]
    for found, candidates in zip(results, (10, 12), strict=True):
        first, five = counted(candidates=candidates)
        assert found.top_1.value == pytest.approx(sum(first) / 200)
        assert found.top_5.value == pytest.approx(sum(five) / 200)
        interval = binomtest(sum(first), 200).proportion_ci(method="wilson")
        assert (found.top_1.low, found.top_1.high) == pytest.approx((interval.low, interval.high))
        assert (found.images, found.candidates, found.classes) == (200, candidates, 10)
        assert found.chance == pytest.approx(1 / candidates)
    assert 0.2 < results[1].top_1.value < results[0].top_1.value < 1


def test_classes_count_alike_in_the_mean_over_classes() -> None:
    images, prototypes, labels = data()
    result = zero_shot(images, labels, prototypes, NAMES)[-1]
    first, _ = counted()
    by_class = {f"class {c}": [hit for hit, label in zip(first, labels, strict=True) if label == c] for c in range(10)}
    assert result.per_class == pytest.approx({name: sum(hits) / len(hits) for name, hits in by_class.items()})
    assert result.mean_per_class == pytest.approx(sum(result.per_class.values()) / 10)


TWINS = ["crane" if i in (3, 7) else name for i, name in enumerate(NAMES)]


class TestClassesOfOneName:
    def test_are_one_target_with_a_part_each_in_the_mean(self) -> None:
        images, prototypes, labels = data()
        present, result = zero_shot(images, labels, prototypes, TWINS)
        assert (present.candidates, result.candidates) == (9, 11)
        assert result.classes == 10
        assert result.chance == pytest.approx(1 / 11)
        first, five = counted(TWINS)
        assert result.top_1.value == pytest.approx(sum(first) / 200)
        assert result.top_5.value == pytest.approx(sum(five) / 200)
        of_class = [[hit for hit, label in zip(first, labels, strict=True) if label == c] for c in range(10)]
        accuracy = [sum(hits) / len(hits) for hits in of_class]
        assert result.mean_per_class == pytest.approx(sum(accuracy) / 10)
        # None is lost, as in a dictionary by name.
        assert len(result.per_class) == 10
        assert result.per_class["crane (label 3)"] == pytest.approx(accuracy[3])
        assert result.per_class["crane (label 7)"] == pytest.approx(accuracy[7])
        assert result.per_class["class 1"] == pytest.approx(accuracy[1])

    def test_score_for_images_of_either(self) -> None:
        names = ["crane", "crane", "heron"]
        prototypes = torch.eye(3)[[0, 0, 2]]
        result = zero_shot(prototypes, np.arange(3), prototypes, names)[-1]
        assert (result.top_1.value, result.mean_per_class) == (1, 1)

    def test_of_which_one_has_no_images_are_a_target_all_the_same(self) -> None:
        prototypes = torch.eye(3)[[0, 0, 2]]
        (result,) = zero_shot(torch.eye(3)[[0, 2]], np.array([1, 2]), prototypes, ["crane", "crane", "heron"])
        assert result.candidate_set == "all"
        assert result.per_class == {"crane (label 1)": 1, "heron": 1}


def test_random_embeddings_are_as_good_as_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, prototypes = (torch.randn(n, 16, generator=generator) for n in (4000, 12))
    labels = np.random.default_rng(0).integers(0, 12, 4000)
    result = zero_shot(images, labels, prototypes, NAMES)[-1]
    assert result.top_1.low < result.chance < result.top_1.high
    assert result.top_5.low < 5 / 12 < result.top_5.high


def test_perfect_and_reversed_embeddings_are_all_right_and_all_wrong() -> None:
    labels = np.arange(6)
    result = zero_shot(torch.eye(6), labels, torch.eye(6), NAMES[:6])[-1]
    assert (result.top_1.value, result.top_1.high, result.mean_per_class) == (1, 1, 1)
    result = zero_shot(-torch.eye(6), labels, torch.eye(6), NAMES[:6])[-1]
    assert (result.top_1.value, result.top_1.low, result.top_5.value) == (0, 0, 0)


def test_with_fewer_than_five_classes_the_top_five_are_all() -> None:
    result = zero_shot(torch.eye(3), np.array([1, 2, 0]), torch.eye(3), NAMES[:3])[-1]
    assert (result.top_1.value, result.top_5.value) == (0, 1)


def test_a_single_class_is_always_right_and_so_is_chance() -> None:
    result = zero_shot(torch.eye(3), np.zeros(3, np.int64), torch.eye(3)[:1], NAMES[:1])[-1]
    assert (result.top_1.value, result.chance, result.candidates) == (1, 1, 1)


class TestTies:
    def test_of_different_names_count_against_and_are_counted(self) -> None:
        labels = np.arange(4)
        (result,) = zero_shot(torch.ones(4, 8), labels, torch.ones(4, 8), NAMES[:4])
        assert (result.top_1.value, result.ties, result.tied) == (0, "strict", 4)

    def test_go_to_the_first_class_where_that_is_the_rule(self) -> None:
        labels = np.arange(4)
        (result,) = zero_shot(torch.ones(4, 8), labels, torch.ones(4, 8), NAMES[:4], "first_index")
        assert (result.top_1.value, result.mean_per_class, result.ties, result.tied) == (0.25, 0.25, "first_index", 4)

    def test_are_none_in_real_numbers(self) -> None:
        images, prototypes, labels = data()
        first, strict = (zero_shot(images, labels, prototypes, NAMES, ties)[-1] for ties in ("first_index", "strict"))
        assert (first.tied, strict.tied, first.top_1) == (0, 0, strict.top_1)


class TestSubset:
    def test_is_ranked_alone(self) -> None:
        images, prototypes, labels = data()
        mask = np.arange(11)
        (result,) = zero_shot(images, labels, prototypes, NAMES, subset=mask)
        first, five = counted(candidates=11)
        assert (result.candidate_set, result.candidates, result.classes, result.chance) == ("subset", 11, 10, 1 / 11)
        assert result.top_1.value == pytest.approx(sum(first) / 200)
        assert result.top_5.value == pytest.approx(sum(five) / 200)

    def test_may_be_in_any_order(self) -> None:
        images, prototypes, labels = data()
        subset = np.random.default_rng(0).permutation(10)
        assert zero_shot(images, labels, prototypes, NAMES, subset=subset) == zero_shot(
            images, labels, prototypes, NAMES, subset=np.arange(10)
        )

    def test_without_the_class_of_an_image_is_refused(self) -> None:
        images, prototypes, labels = data()
        with pytest.raises(ValueError, match="images have the class class 3, which is not ranked"):
            zero_shot(images, labels, prototypes, NAMES, subset=np.array([0, 1, 2]))


class TestEnsemble:
    def test_is_the_normalised_mean_of_normalised_prompts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # In blocks, and with another number of prompts of each class.
        monkeypatch.setattr(ranks, "_BLOCK", 3)
        prompts = np.random.default_rng(0).normal(size=(10, 6))
        of_class = np.array([0, 1, 1, 2, 2, 2, 0, 0, 1, 0])
        units = prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
        means = np.stack([units[of_class == c].mean(0) for c in range(3)])
        expected = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(ensemble(torch.from_numpy(prompts), of_class, 3), expected, atol=1e-12)

    def test_of_no_prompt_is_refused(self) -> None:
        with pytest.raises(ValueError, match="class 1 has no prompt"):
            ensemble(torch.ones(2, 4), np.array([0, 2]), 3)


def test_mean_per_class_has_an_interval() -> None:
    images, prototypes, labels = data()
    result = zero_shot(images, labels, prototypes, NAMES)[-1]
    low, high = result.mean_per_class_interval
    assert low < result.mean_per_class < high
    assert high - low == pytest.approx(result.top_1.high - result.top_1.low, rel=0.2)


def test_embeddings_that_are_no_numbers_are_all_wrong() -> None:
    broken = torch.full((4, 8), torch.nan)
    assert zero_shot(broken, np.arange(4), broken, NAMES[:4])[-1].top_1.value == 0


def test_blocks_change_nothing_and_progress_is_told(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    images, prototypes, labels = data()
    whole = zero_shot(images, labels, prototypes, NAMES)
    monkeypatch.setattr(ranks, "_BLOCK", 7)
    monkeypatch.setattr("sharelock_ray.progress._LOG_EVERY_S", 0)
    assert zero_shot(images, labels, prototypes, NAMES) == whole
    assert "/2,400 similarities" in said.getvalue()


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        zero_shot(torch.empty(0, 8), np.empty(0, np.int64), torch.eye(8), NAMES[:8])


class TestAnyClass:
    def test_the_nearest_right_class_counts(self) -> None:
        image = torch.eye(3)
        has_class = np.array([[True, False, True], [True, False, True], [False, True, True]])
        found, candidates = any_class_ranks(image, has_class, torch.eye(3), ["a", "b", "c"])
        # Image 1 is nearest to class 1, which is wrong; classes 0 and 2 are right, and as far.
        assert (found.ahead.tolist(), found.tied.tolist(), candidates) == ([0, 1, 0], [False] * 3, 3)

    def test_one_label_each_is_plain_classification(self) -> None:
        generator = torch.Generator().manual_seed(0)
        image, prototypes = (torch.randn(n, 4, generator=generator) for n in (50, 7))
        labels = np.arange(50) % 7
        names = ["a", "b", "a", "c", "d", "e", "f"]
        for ties in ("strict", "first_index"):
            one, _ = class_ranks(image, labels, prototypes, names, np.arange(7), ties)
            several, _ = any_class_ranks(image, np.eye(7, dtype=bool)[labels], prototypes, names, ties)
            assert several.ahead.tolist() == one.ahead.tolist()

    def test_a_name_that_classes_share_is_right_for_each(self) -> None:
        image, prototypes = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        has_class = np.array([[False, False, True]])
        found, candidates = any_class_ranks(image, has_class, prototypes, ["a", "b", "b"])
        assert (found.ahead.tolist(), found.tied.tolist(), candidates) == ([0], [False], 2)
        first, _ = any_class_ranks(image, has_class, prototypes, ["a", "b", "b"], "first_index")
        assert (first.ahead.tolist(), first.tied.tolist()) == ([1], [True])
