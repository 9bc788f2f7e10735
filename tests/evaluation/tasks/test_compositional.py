"""Scores are those of Winoground's definition, by plain loops, and kinds of change have their own."""

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.tasks.compositional import choices, compositional


def unit(*shape: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_scores_are_those_of_winoground() -> None:
    image, text = unit(200, 2, 8, seed=0), unit(200, 2, 8, seed=1)
    text_scores, image_scores, groups = [], [], []
    for (i0, i1), (c0, c1) in zip(image, text, strict=True):
        # As in its paper, section 4.1.
        text_scores.append(bool(c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1))
        image_scores.append(bool(c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0))
        groups.append(text_scores[-1] and image_scores[-1])
    found = choices(image, text)
    assert found.text is not None
    assert (found.text.tolist(), found.image.tolist(), found.group.tolist()) == (text_scores, image_scores, groups)
    total = compositional(image, text).total
    assert total.text.value == np.mean(text_scores)
    assert total.image.value == np.mean(image_scores)
    assert total.group.value == np.mean(groups)


@pytest.mark.parametrize(("images", "texts"), [(2, 2), (1, 2), (1, 5), (2, 1), (3, 2)])
def test_random_similarities_are_as_good_as_chance(images: int, texts: int) -> None:
    # In many dimensions, similarities of random vectors are almost independent.
    found = compositional(unit(8000, images, 256, seed=0), unit(8000, texts, 256, seed=1))
    for name in ("text", "image", "group"):
        score, chance = getattr(found.total, name), getattr(found.chance, name)
        if chance is not None:
            assert score.value == pytest.approx(chance, abs=0.02)
    assert (found.total.text is None, found.total.image is None) == (texts == 1, images == 1)
    assert (found.images_of_sample, found.texts_of_sample) == (images, texts)


def test_each_kind_of_change_has_scores() -> None:
    image = torch.eye(2)[None].repeat(4, 1, 1)
    text = image.clone()
    text[3] = text[3].flip(0)
    found = compositional(image, text, ["order", "order", "object", "object"])
    assert {kind: (scores.samples, scores.group.value) for kind, scores in found.by_kind.items()} == {
        "order": (2, 1.0),
        "object": (2, 0.5),
    }
    assert (found.total.samples, found.total.group.value) == (4, 0.75)


def test_ties_are_errors_or_go_to_the_first_and_are_counted() -> None:
    image, text = torch.ones(3, 1, 2), torch.ones(3, 2, 2)
    image[0], text[0] = torch.eye(2)[:1], torch.eye(2)
    strict, first = compositional(image, text), compositional(image, text, ties="first_index")
    assert (strict.total.text.value, strict.tied) == (pytest.approx(1 / 3), 2)
    assert (first.total.text.value, first.tied, first.ties) == (1, 2, "first_index")


@pytest.mark.parametrize("ties", ["strict", "first_index"])
def test_embeddings_that_are_no_numbers_are_wrong(ties: str) -> None:
    broken = torch.full((3, 2, 4), torch.nan)
    total = compositional(broken, broken, ties=ties).total
    assert (total.text.value, total.image.value, total.group.value) == (0, 0, 0)


def test_samples_of_one_image_are_not_independent() -> None:
    image, text = torch.eye(2)[None, :1].repeat(80, 1, 1), torch.eye(2)[None].repeat(80, 1, 1)
    of_image = np.repeat(np.arange(20), 4)
    text[of_image < 5] = text[of_image < 5].flip(1)
    alone = compositional(image, text)
    grouped = compositional(image, text, image_of_sample=of_image)
    assert alone.total.text.value == grouped.total.text.value == 0.75
    assert (alone.images, grouped.images, grouped.total.samples) == (80, 20, 80)
    assert grouped.total.text.low < alone.total.text.low


def test_one_image_with_one_text_is_no_choice() -> None:
    with pytest.raises(ValueError, match="at least two images or two texts"):
        compositional(torch.ones(3, 1, 2), torch.ones(3, 1, 2))


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        compositional(torch.ones(0, 2, 2), torch.ones(0, 2, 2))
