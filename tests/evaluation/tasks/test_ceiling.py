"""The ceiling tells which side lacks what a choice needs, or that neither does and the projection loses it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.result import Loss
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.evaluation.tasks import ceiling as module
from sharelock_ray.evaluation.tasks.ceiling import FOLDS, Fusion, Side, ceiling, fuse, groups_of
from sharelock_ray.evaluation.tasks.compositional import Choices
from sharelock_ray.evaluation.tasks.probe import Probe, fit_probes

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


def found(model: np.ndarray, **holds: bool) -> tuple[Fusion, tuple[str, ...], str]:
    fusion = fuse(*sides(**holds), VALUES)
    loss = ceiling(fusion, chose(model), ["swap"] * SAMPLES, np.arange(SAMPLES)).by_kind["swap"]
    return fusion, loss.where, loss.statement


def test_what_both_sides_hold_is_lost_in_the_projection() -> None:
    fusion, where, statement = found(np.arange(SAMPLES) % 4 == 0)
    for side in (fusion.image, fusion.text, fusion.both):
        assert side.group is not None
        assert side.group.mean() > 0.95
    assert where == ("projection",)
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
    assert where == (f"{side} side",)


def test_nothing_is_lost_if_all_choices_are_right_or_the_model_beats_the_probes() -> None:
    everything = np.ones(SAMPLES, bool)
    assert found(everything)[1] == ()
    _, where, statement = found(everything, image_holds=False)
    assert where == ()
    assert "linear probes find less than the model uses" in statement
    assert "points" in statement


def test_a_model_at_chance_does_not_beat_probes_that_systematically_fail() -> None:
    model, image, text, both, projection = (
        Estimate(value=value, low=value - 0.05, high=value + 0.05) for value in (0.2, 0.6, 0.3, 0.1, -0.1)
    )
    found = Loss(samples=90, chance=1 / 6, model=model, image=image, text=text, both=both, projection=projection)
    assert found.where == ("text side",)
    assert found.model_copy(update={"chance": 0.1}).where == ()
    alike = found.model_copy(update={"image": text.model_copy(update={"value": 0.28})})
    assert alike.where == ("image side", "text side")
    assert "most is lost in the image side and the text side" in alike.statement


@dataclass(frozen=True)
class Given:
    """A probe whose logits are four of the features."""

    start: int

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, self.start : self.start + 4]


def test_choices_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agreement of each image and text, by plain loops over the probabilities of the probes."""
    monkeypatch.setattr(module, "fit_probes", lambda *arguments: [Given(0), Given(4)])
    image, text = (replace(side, features=3 * torch.randn_like(side.features)) for side in sides())
    fusion = fuse(image, text, VALUES)

    def shares(side: Side, item: int, place: int) -> np.ndarray:
        weights = np.exp(side.features[item, 4 * place : 4 * place + 4].double().numpy())
        return weights / weights.sum()

    def agreement(x: int, y: int, known_x: bool, known_y: bool) -> float:
        total = 0.0
        for place, name in enumerate(VALUES):
            p, q = shares(image, x, place), shares(text, y, place)
            p = np.eye(4)[image.values[name][x]] if known_x else p
            q = np.eye(4)[text.values[name][y]] if known_y else q
            total += np.log(p @ q)
        return total

    for name, known_x, known_y in (("image", False, True), ("text", True, False), ("both", False, False)):
        found = getattr(fusion, name)
        for sample in range(0, SAMPLES, 5):
            (a, b), (c, d) = image.of_sample[sample], text.of_sample[sample]
            s = {(x, y): agreement(x, y, known_x, known_y) for x in (a, b) for y in (c, d)}
            assert found.text[sample] == (s[a, c] > s[a, d] and s[b, d] > s[b, c])
            assert found.image[sample] == (s[a, c] > s[b, c] and s[b, d] > s[a, d])


def test_no_probe_is_fitted_to_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = sides()
    # The first two samples share an image.
    image.of_sample[1] = image.of_sample[0]
    fitted: list[set[float]] = []

    def seen(features: torch.Tensor, *arguments: object) -> list[Probe]:
        fitted.append(set(features[:, 0].tolist()))
        return fit_probes(features, *arguments)

    monkeypatch.setattr(module, "fit_probes", seen)
    fuse(image, text, VALUES)
    for side, found in ((image, fitted[:FOLDS]), (text, fitted[FOLDS:])):
        samples = [{float(side.features[item, 0]) for item in items} for items in side.of_sample]
        # Each sample's items are in the fits of all folds but one, in which none of them is.
        assert all([items <= fold for fold in found].count(False) == 1 for items in samples)
        assert all(items <= fold or not items & fold for fold in found for items in samples)
        assert [samples[0] <= fold for fold in found] == [samples[1] <= fold for fold in found]


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
    assert (limit.total.samples, limit.total.chance) == (SAMPLES - 10, 1 / 6)
    assert (limit.measure, limit.folds, limit.by_kind) == ("group", FOLDS, {})


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
