"""Zero-shot accuracy equals what plain loops count."""

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.zero_shot import zero_shot

NAMES = [f"class {i}" for i in range(12)]


def data(images: int = 200, classes: int = 12, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Images near, but not too near, to the prototypes of their classes; the last two classes have none."""
    generator = np.random.default_rng(seed)
    prototypes = generator.normal(size=(classes, 16))
    labels = generator.integers(0, classes - 2, images)
    images = prototypes[labels] + 1.5 * generator.normal(size=(images, 16))
    return *(torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, prototypes)), labels


def counted() -> tuple[list[int], list[bool], list[bool]]:
    """Predictions, top-1 hits and top-5 hits, by sorting each image's classes in plain Python."""
    images, prototypes, labels = data()
    predictions, first, five = [], [], []
    for image, label in zip(images.tolist(), labels, strict=True):
        cosines = [sum(a * b for a, b in zip(image, prototype, strict=True)) for prototype in prototypes.tolist()]
        order = sorted(range(len(cosines)), key=lambda c: -cosines[c])
        predictions.append(order[0])
        first.append(order[0] == label)
        five.append(label in order[:5])
    return predictions, first, five


def test_accuracies_and_predictions_equal_plain_loops() -> None:
    images, prototypes, labels = data()
    result, predicted = zero_shot(images, labels, prototypes, NAMES)
    predictions, first, five = counted()
    assert predicted.tolist() == predictions
    assert result.top_1.value == pytest.approx(sum(first) / 200)
    assert result.top_5.value == pytest.approx(sum(five) / 200)
    assert 0.2 < result.top_1.value < result.top_5.value < 1
    assert result.top_1.low < result.top_1.value < result.top_1.high


def test_classes_count_alike_in_the_mean_over_classes() -> None:
    images, prototypes, labels = data()
    result, _ = zero_shot(images, labels, prototypes, NAMES)
    _, first, _ = counted()
    by_class = {f"class {c}": [hit for hit, label in zip(first, labels, strict=True) if label == c] for c in range(10)}
    assert result.per_class == pytest.approx({name: sum(hits) / len(hits) for name, hits in by_class.items()})
    assert result.mean_per_class == pytest.approx(sum(result.per_class.values()) / 10)


def test_chance_is_of_all_candidates_though_some_have_no_images() -> None:
    images, prototypes, labels = data()
    result, _ = zero_shot(images, labels, prototypes, NAMES)
    assert (result.images, result.candidates, result.classes) == (200, 12, 10)
    assert result.chance == pytest.approx(1 / 12)


def test_random_embeddings_are_as_good_as_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, prototypes = (torch.randn(n, 16, generator=generator) for n in (4000, 12))
    labels = np.random.default_rng(0).integers(0, 12, 4000)
    result, _ = zero_shot(images, labels, prototypes, NAMES)
    assert result.top_1.low < result.chance < result.top_1.high
    assert result.top_5.low < 5 / 12 < result.top_5.high


def test_perfect_and_reversed_embeddings_are_all_right_and_all_wrong() -> None:
    labels = np.arange(6)
    result, _ = zero_shot(torch.eye(6), labels, torch.eye(6), NAMES[:6])
    assert (result.top_1.value, result.top_1.low, result.mean_per_class) == (1, 1, 1)
    result, _ = zero_shot(-torch.eye(6), labels, torch.eye(6), NAMES[:6])
    assert (result.top_1.value, result.top_5.value) == (0, 0)


def test_with_fewer_than_five_classes_the_top_five_are_all() -> None:
    result, _ = zero_shot(torch.eye(3), np.array([1, 2, 0]), torch.eye(3), NAMES[:3])
    assert (result.top_1.value, result.top_5.value) == (0, 1)


def test_ties_count_against() -> None:
    labels = np.arange(4)
    result, _ = zero_shot(torch.ones(4, 8), labels, torch.ones(4, 8), NAMES[:4])
    assert result.top_1.value == 0


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        zero_shot(torch.empty(0, 8), np.empty(0, np.int64), torch.eye(8), NAMES[:8])
