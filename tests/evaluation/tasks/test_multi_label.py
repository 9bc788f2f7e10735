"""Average precision is scikit-learn's without ties, and the worst order of tied images with them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from sharelock_ray.evaluation.tasks.multi_label import compare_precision, multi_label

NAMES = ["bird", "crane", "crane", "dog"]


def data(images: int = 120) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Images near the sum of the prototypes of their classes; none has the last class."""
    generator = np.random.default_rng(0)
    prototypes = np.linalg.qr(generator.normal(size=(8, 4)))[0].T
    has_class = generator.random((images, 4)) < 0.3
    has_class[:, 3] = False
    image = has_class @ prototypes + 0.5 * generator.normal(size=(images, 8))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    return torch.from_numpy(image), has_class, torch.from_numpy(prototypes)


def test_precisions_are_those_of_scikit_learn() -> None:
    image, has_class, prototypes = data()
    found = multi_label(image, has_class, prototypes, NAMES)
    scores = (image @ prototypes.T).numpy()
    expected = [average_precision_score(has_class[:, c], scores[:, c]) for c in range(3)]
    assert found.per_class == pytest.approx(
        {"bird": expected[0], "crane (label 1)": expected[1], "crane (label 2)": expected[2]}
    )
    assert found.mean_average_precision.value == pytest.approx(np.mean(expected))
    assert (found.images, found.candidates, found.classes, found.tied) == (120, 4, 3, 0)
    assert found.chance == pytest.approx(has_class[:, :3].mean())


def test_interval_is_that_of_resampling_images_by_hand() -> None:
    image, has_class, prototypes = data()
    found = multi_label(image, has_class, prototypes, NAMES).mean_average_precision
    scores = (image @ prototypes.T).numpy()
    generator = np.random.default_rng(7)
    means = []
    for _ in range(600):
        some = generator.integers(0, 120, 120)
        # Copies of an image are tied: they are told apart.
        noise = generator.random(120) * 1e-9
        of_class = [average_precision_score(has_class[some, c], scores[some, c] + noise) for c in range(3)]
        means.append(np.mean(of_class))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


@pytest.mark.parametrize(("ties", "expected"), [("strict", (1 / 3 + 2 / 4) / 2), ("first_index", (1 + 2 / 3) / 2)])
def test_images_alike_fail_or_keep_their_order(ties: str, expected: float) -> None:
    has_class = np.array([[True], [False], [True], [False]])
    found = multi_label(torch.ones(4, 2), has_class, torch.ones(1, 2), ["dog"], ties)
    assert (found.mean_average_precision.value, found.tied) == (pytest.approx(expected), 2)


def test_equal_up_to_rounding_is_a_tie() -> None:
    image = torch.tensor([[1.0], [1.0 - 5e-7], [0.0]], dtype=torch.float64)
    has_class = np.array([[True], [False], [False]])
    found = multi_label(image, has_class, torch.ones(1, 1, dtype=torch.float64), ["dog"])
    assert (found.mean_average_precision.value, found.tied) == (0.5, 1)


@pytest.mark.parametrize("ties", ["strict", "first_index"])
def test_no_number_is_the_worst_similarity(ties: str) -> None:
    has_class = np.array([[True], [False], [False], [False]])
    broken = torch.full((4, 2), torch.nan)
    assert multi_label(broken, has_class, torch.ones(1, 2), ["dog"], ties).mean_average_precision.value == 0.25


def test_images_without_any_class_are_refused() -> None:
    image, has_class, prototypes = data(9)
    with pytest.raises(ValueError, match="at least one image that has a class"):
        multi_label(image, np.zeros_like(has_class), prototypes, NAMES)


class TestPairs:
    def test_the_difference_is_that_of_resampling_images_for_both_models_by_hand(self) -> None:
        image, has_class, prototypes = data()
        generator = np.random.default_rng(7)
        first = (image @ prototypes.T).numpy()
        second = first + 0.3 * generator.normal(size=first.shape)
        found, p = compare_precision(first, second, has_class)

        def difference(some: np.ndarray) -> float:
            # Copies of an image are tied: they are told apart.
            noise = generator.random((len(some), 1)) * 1e-9
            one, other = (
                np.mean([average_precision_score(has_class[some, c], (s[some] + noise)[:, c]) for c in range(3)])
                for s in (first, second)
            )
            return float(other - one)

        means = np.array([difference(generator.integers(0, 120, 120)) for _ in range(400)])
        low, high = np.quantile(means, [0.025, 0.975])
        assert found.value == pytest.approx(difference(np.arange(120)))
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))
        assert p == pytest.approx(np.mean(np.abs(means - found.value) >= abs(found.value)), abs=0.05)

    def test_a_model_does_not_differ_from_itself(self) -> None:
        image, has_class, prototypes = data()
        scores = (image @ prototypes.T).numpy()
        found, p = compare_precision(scores, scores, has_class)
        assert (found.value, found.low, found.high, p) == (0, 0, 0, 1)

    def test_the_difference_is_the_second_value_minus_the_first(self) -> None:
        image, has_class, prototypes = data()
        worse = image.flip(0)
        first, second = (multi_label(each, has_class, prototypes, NAMES) for each in (image, worse))
        found, p = compare_precision(*((each @ prototypes.T).numpy() for each in (image, worse)), has_class)
        values = [each.mean_average_precision.value for each in (first, second)]
        assert found.value == pytest.approx(values[1] - values[0])
        assert found.high < 0
        assert p == pytest.approx(1 / 1001)

    def test_images_without_classes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one image that has a class"):
            compare_precision(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3), bool))
