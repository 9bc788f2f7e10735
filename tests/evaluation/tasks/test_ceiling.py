"""The ceiling tells which side lacks what a choice needs, or that neither does and the projection loses it."""

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.tasks.ceiling import FOLDS, Fusion, Side, ceiling, fuse, groups_of
from sharelock_ray.evaluation.tasks.compositional import Choices

VALUES = {"colour of the circle": 3, "colour of the square": 3}
SAMPLES = 90


def sides(image_holds: bool = True, text_holds: bool = True, seed: int = 0) -> tuple[Side, Side]:
    """Two images and two texts with exchanged colours of a circle and a square. Features hold which shape has which
    colour, or only which colours there are."""
    rng = np.random.default_rng(seed)
    pairs = np.array([rng.choice(3, 2, replace=False) for _ in range(SAMPLES)]) + 1
    items = np.stack([pairs, pairs[:, ::-1]], 1).reshape(-1, 2)

    def side(holds: bool) -> Side:
        bound = np.concatenate([np.eye(4)[items[:, 0]], np.eye(4)[items[:, 1]]], 1)
        bag = np.eye(4)[items].sum(1).repeat(2, 1)
        features = (bound if holds else bag) + 0.05 * rng.normal(size=(len(items), 8))
        values = dict(zip(VALUES, items.T, strict=True))
        return Side(torch.from_numpy(features).float(), np.arange(2 * SAMPLES).reshape(SAMPLES, 2), values)

    return side(image_holds), side(text_holds)


def chose(right: np.ndarray) -> Choices:
    return Choices(right, right, np.zeros(len(right), bool))


def found(model: np.ndarray, **holds: bool) -> tuple[Fusion, str | None, str]:
    fusion = fuse(*sides(**holds), VALUES)
    loss = ceiling(fusion, chose(model), ["swap"] * SAMPLES, np.arange(SAMPLES)).by_kind["swap"]
    return fusion, loss.where, loss.statement


def test_what_both_sides_hold_is_lost_in_the_projection() -> None:
    fusion, where, statement = found(np.arange(SAMPLES) % 4 == 0)
    for side in (fusion.image, fusion.text, fusion.both):
        assert side.group is not None
        assert side.group.mean() > 0.95
    assert where == "projection"
    assert "most is lost in the projection" in statement
    assert all(each.image.value > 0.95 < each.text.value for each in fusion.attributes.values())


@pytest.mark.parametrize(("side", "holds"), [("image", "image_holds"), ("text", "text_holds")])
def test_what_a_side_lacks_is_lost_there(side: str, holds: str) -> None:
    fusion, where, _ = found(np.arange(SAMPLES) % 4 == 0, **{holds: False})
    shares = {name: getattr(fusion, name).group.mean() for name in ("image", "text", "both")}
    other = "text" if side == "image" else "image"
    assert shares[other] > 0.95
    assert shares[side] < 0.5
    assert shares["both"] < 0.5
    assert where == f"{side} side"


def test_nothing_is_lost_if_all_choices_are_right_or_the_model_beats_the_probes() -> None:
    everything = np.ones(SAMPLES, bool)
    assert found(everything)[1] is None
    _, where, statement = found(everything, image_holds=False)
    assert where is None
    assert "linear probes find less than the model uses" in statement
    assert "points more than both" in statement


def test_scores_agree_with_the_definition() -> None:
    """The agreement of each image and text by plain loops, from the probabilities that probes of other folds give."""
    image, text = sides(seed=3)
    fusion = fuse(image, text, VALUES, seed=5)
    again = fuse(image, text, VALUES, seed=5)
    np.testing.assert_array_equal(fusion.both.group, again.both.group)
    # Texts that tell the truth by their features alone give the same choices as the known values.
    sure = Side(1e3 * text.features, text.of_sample, text.values)
    np.testing.assert_array_equal(fuse(image, sure, VALUES, seed=5).image.group, fusion.image.group)


def test_samples_that_attributes_do_not_tell_apart_do_not_count() -> None:
    image, text = sides()
    values = {name: of.copy() for name, of in text.values.items()}
    for of in values.values():
        of[:20] = of[0]
    alike = Side(text.features, text.of_sample, values)
    fusion = fuse(image, alike, VALUES)
    assert not fusion.told_apart[:10].any()
    assert fusion.told_apart[10:].all()
    limit = ceiling(fusion, chose(np.ones(SAMPLES, bool)), [""] * SAMPLES, np.arange(SAMPLES))
    assert limit.samples == limit.total.samples == SAMPLES - 10
    assert (limit.measure, limit.chance, limit.folds, limit.by_kind) == ("group", 1 / 6, FOLDS, {})


def test_no_sample_told_apart_is_refused() -> None:
    image, text = sides()
    alike = Side(text.features, text.of_sample, {name: np.ones_like(of) for name, of in text.values.items()})
    with pytest.raises(ValueError, match="tell no image or text of a sample from another"):
        ceiling(fuse(image, alike, VALUES), chose(np.ones(SAMPLES, bool)), [""] * SAMPLES, np.arange(SAMPLES))


def test_samples_that_share_items_are_in_one_group() -> None:
    images, texts = np.array([[0], [1], [0], [2], [3]]), np.array([[0, 1], [2, 3], [4, 5], [6, 2], [7, 8]])
    first, second, third, fourth, fifth = groups_of(images, texts).tolist()
    assert first == third
    assert second == fourth
    assert len({first, second, fifth}) == 3


def test_too_few_groups_are_refused() -> None:
    image, text = sides()
    one = Side(text.features, np.zeros_like(text.of_sample), text.values)
    with pytest.raises(ValueError, match="1 groups of samples"):
        fuse(image, one, VALUES)
