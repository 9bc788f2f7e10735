"""Accuracies of unseen classes equal what plain loops count, at each calibration; the area is that of their curve."""

import itertools

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.tasks.generalised import (
    Decisions,
    Sides,
    best_gamma,
    decisions,
    decisions_of,
    generalised,
    harmonic_mean,
)

SIDES = Sides(seen=np.array([0, 2, 5]), unseen=np.array([1, 4, 6, 7]))
"""Class 3 is on neither side; class 7 has no images."""
NAMES = [f"class {i}" for i in range(8)]


def data(images: int = 120, seed: int = 0, step: float = 0.0) -> tuple[torch.Tensor, np.ndarray]:
    """Scores that favour the own class and the seen ones; rounded to multiples of `step`, they have ties."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 1, 2, 4, 5, 6], images, p=[0.3, 0.1, 0.1, 0.2, 0.1, 0.2])
    scores = generator.normal(size=(images, 8))
    scores[np.arange(images), labels] += 1.0
    scores[:, SIDES.seen] += 0.5
    if step:
        scores = np.round(scores / step) * step
    return torch.from_numpy(scores).float(), labels


def counted(scores: torch.Tensor, labels: np.ndarray, gamma: float | None) -> tuple[float, float]:
    """Mean accuracy per class of seen and unseen images by plain loops; without gamma, of each side by itself."""
    of_class: dict[int, list[bool]] = {}
    for row, label in zip(scores.double().tolist(), labels.tolist(), strict=True):
        candidates = [*SIDES.seen, *SIDES.unseen]
        if gamma is None:
            candidates = list(SIDES.seen if label in SIDES.seen else SIDES.unseen)
        value = {c: row[c] - (gamma or 0.0) * (c in SIDES.seen) for c in candidates}
        hit = all(value[label] > value[c] + 1e-6 for c in candidates if c != label)
        of_class.setdefault(label, []).append(hit)
    means = {c: sum(hits) / len(hits) for c, hits in of_class.items()}
    sides = [[means[c] for c in side.tolist() if c in means] for side in (SIDES.seen, SIDES.unseen)]
    return sum(sides[0]) / len(sides[0]), sum(sides[1]) / len(sides[1])


def curve(scores: torch.Tensor, labels: np.ndarray) -> list[tuple[float, float]]:
    """(seen, unseen) accuracy at each interval between the margins of images, where alone the curve changes."""
    rows = scores.double().numpy()
    margins = np.unique(rows[:, SIDES.seen].max(1) - rows[:, SIDES.unseen].max(1))
    between = [margins[0] - 1, *(a + (b - a) / 2 for a, b in itertools.pairwise(margins)), margins[-1] + 1]
    return [counted(scores, labels, gamma) for gamma in between]


def area(found: Decisions) -> float:
    """AUSUC by its definition, as a sum over pairs of a seen and an unseen image."""
    weight = {c: 1 / (3 * n) for c, n in zip(*np.unique(found.labels, return_counts=True), strict=True)}
    of_side = [
        [(found.limit[i], weight[found.labels[i]]) for i in np.flatnonzero(side & found.first)]
        for side in (found.seen, ~found.seen)
    ]
    return sum(w * v for limit, w in of_side[0] for other, v in of_side[1] if other < limit)


@pytest.mark.parametrize("gamma", [0.0, 0.3, -0.2])
def test_accuracies_equal_plain_loops(gamma: float) -> None:
    scores, labels = data()
    found = generalised(decisions_of(scores, labels, SIDES), SIDES, NAMES, gamma)
    both = found.generalised
    assert both is not None
    assert both.calibrated is not None
    for accuracy, at in ((both.uncalibrated, 0.0), (both.calibrated, gamma)):
        seen, unseen = counted(scores, labels, at)
        assert (accuracy.seen.value, accuracy.unseen.value) == pytest.approx((seen, unseen))
        assert accuracy.harmonic_mean.value == pytest.approx(2 * seen * unseen / (seen + unseen))
        assert accuracy.gamma == at
    assert found.zero_shot.value == pytest.approx(counted(scores, labels, None)[1])
    assert found.zero_shot.value == pytest.approx(np.mean(list(found.per_class.values())))
    assert found.per_class.keys() == {"class 1", "class 4", "class 6"}
    assert (found.images, both.seen_images) == (
        int(np.isin(labels, SIDES.unseen).sum()),
        int(np.isin(labels, SIDES.seen).sum()),
    )
    assert (found.seen_classes, found.unseen_classes, found.chance) == (3, 4, 1 / 4)


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_the_area_is_that_under_the_curve_of_all_calibrations(step: float) -> None:
    scores, labels = data(step=step)
    points = curve(scores, labels)
    area = sum((b[1] - a[1]) * b[0] for a, b in itertools.pairwise(points))
    both = generalised(decisions_of(scores, labels, SIDES), SIDES, NAMES).generalised
    assert both is not None
    assert both.area.value == pytest.approx(area)
    seen, unseen = counted(scores, labels, None)
    assert 0 < both.area.value < seen * unseen


def test_the_best_calibration_is_the_best_of_all() -> None:
    scores, labels = data()
    found = decisions_of(scores, labels, SIDES)
    best = max(2 * s * u / (s + u) for s, u in curve(scores, labels) if s + u)
    gamma = best_gamma(found)
    assert gamma > 0.1
    seen, unseen = counted(scores, labels, gamma)
    assert 2 * seen * unseen / (seen + unseen) == pytest.approx(best)


def test_of_equally_good_calibrations_the_smallest_is_taken() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert best_gamma(decisions_of(scores, np.array([0, 1]), Sides(np.array([0]), np.array([1])))) == 0


def test_intervals_resample_images_within_classes() -> None:
    scores, labels = data(images=600)
    found = generalised(decisions_of(scores, labels, SIDES), SIDES, NAMES, 0.3)
    both = found.generalised
    assert both is not None
    assert both.calibrated is not None
    generator = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {"zero-shot": [], "harmonic mean": [], "area": []}
    for _ in range(200):
        rows = np.concatenate(
            [generator.choice(of := np.flatnonzero(labels == c), len(of)) for c in np.unique(labels).tolist()]
        )
        seen, unseen = counted(scores[rows], labels[rows], 0.3)
        drawn["zero-shot"].append(counted(scores[rows], labels[rows], None)[1])
        drawn["harmonic mean"].append(2 * seen * unseen / (seen + unseen))
        drawn["area"].append(area(decisions_of(scores[rows], labels[rows], SIDES)))
    shown = {"zero-shot": found.zero_shot, "harmonic mean": both.calibrated.harmonic_mean, "area": both.area}
    for name, estimate in shown.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.02), name
        assert estimate.low < estimate.value < estimate.high


def test_classes_without_variation_have_no_width() -> None:
    scores = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).repeat(4, 1)
    sides = Sides(np.array([0]), np.array([1, 2]))
    found = generalised(decisions_of(scores, np.tile([0, 1, 2], 4), sides), sides, ["a", "b", "c"])
    both = found.generalised
    assert both is not None
    assert both.calibrated is None
    for estimate in (found.zero_shot, both.area, both.uncalibrated.harmonic_mean):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1, 1, 1))


def test_a_tie_with_a_wrong_class_is_an_error_on_either_side() -> None:
    sides = Sides(np.array([0, 1]), np.array([2, 3]))
    scores = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]])
    found = decisions_of(scores, np.array([0, 0, 2]), sides)
    assert found.first.tolist() == [False, True, True]
    assert found.right(0.0).tolist() == [False, False, False]
    assert found.right(-0.1).tolist() == [False, True, False]
    assert found.right(0.1).tolist() == [False, False, True]


def test_a_score_that_is_no_number_is_an_error() -> None:
    scores, labels = data(images=6)
    scores[:] = torch.nan
    found = decisions_of(scores, labels, SIDES)
    assert not found.first.any()
    assert not found.right(0.0).any()


def test_a_model_that_finds_nothing_has_a_harmonic_mean_of_0() -> None:
    sides = Sides(np.array([0]), np.array([1, 2]))
    scores = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    both = generalised(decisions_of(scores, np.array([0, 1]), sides), sides, ["a", "b", "c"]).generalised
    assert both is not None
    assert both.uncalibrated.harmonic_mean.value == 0
    assert harmonic_mean(np.zeros(1), np.zeros(1)).tolist() == [0.0]


def test_without_images_of_seen_classes_only_unseen_ones_are_scored() -> None:
    scores, labels = data()
    unseen = np.isin(labels, SIDES.unseen)
    found = generalised(decisions_of(scores[unseen], labels[unseen], SIDES), SIDES, NAMES)
    assert found.generalised is None
    assert found.zero_shot.value == pytest.approx(counted(scores, labels, None)[1])


def test_similarities_are_computed_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    image, prototypes = (
        torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (2500, 8)
    )
    labels = np.random.default_rng(0).choice([0, 1, 2, 4, 5, 6], 2500)
    found, whole = decisions(image, labels, prototypes, SIDES), decisions_of(image @ prototypes.T, labels, SIDES)
    assert isinstance(found, Decisions)
    for name in ("labels", "seen", "first"):
        assert (getattr(found, name) == getattr(whole, name)).all()
    assert found.limit == pytest.approx(whole.limit, abs=1e-6)


def test_images_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="a class of neither side"):
        decisions_of(torch.zeros(1, 8), np.array([3]), SIDES)
    scores, labels = data()
    seen = np.isin(labels, SIDES.seen)
    only = decisions_of(scores[seen], labels[seen], SIDES)
    with pytest.raises(ValueError, match="no images of unseen classes"):
        generalised(only, SIDES, NAMES)
    with pytest.raises(ValueError, match="images of seen and of unseen classes"):
        best_gamma(only)
