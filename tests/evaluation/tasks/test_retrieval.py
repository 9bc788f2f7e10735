"""Recall equals what plain loops count, and nothing is gained by ties or broken embeddings."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sharelock_ray.evaluation import ranks as module
from sharelock_ray.evaluation.tasks.retrieval import retrieval

KS = (1, 3, 10)


def small_integers(rows: int, seed: int, high: int = 2) -> torch.Tensor:
    """Products of such vectors are exact, and often equal."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-high, high + 1, (rows, 6))).float()


def counted(image: torch.Tensor, text: torch.Tensor, owner: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Recall of both directions by plain loops: a query is found if fewer than k wrong items are at least as near."""
    images, texts = image.tolist(), text.tolist()

    def near(i: int, t: int) -> float:
        return sum(a * b for a, b in zip(images[i], texts[t], strict=True))

    to_text, to_image = [], []
    for i in range(len(images)):
        best = max(near(i, t) for t in range(len(texts)) if owner[t] == i)
        to_text.append(sum(near(i, t) >= best for t in range(len(texts)) if owner[t] != i))
    for t in range(len(texts)):
        to_image.append(sum(near(i, t) >= near(owner[t], t) for i in range(len(images)) if i != owner[t]))
    return tuple({k: sum(r < k for r in ranks) / len(ranks) for k in KS} for ranks in (to_text, to_image))


def values(estimates: dict) -> dict[int, float]:
    return {k: estimate.value for k, estimate in estimates.items()}


OWNERS = {"one text each": list(range(40)), "several": [i for i in range(40) for _ in range(1 + i % 3)]}
OWNERS["several, mixed"] = np.random.default_rng(1).permutation(OWNERS["several"]).tolist()


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
@pytest.mark.parametrize("high", [1, 100], ids=["with many ties", "with few ties"])
def test_recall_equals_plain_loops(owner: list[int], high: int) -> None:
    image = small_integers(40, 0, high)
    text = image[owner] + small_integers(len(owner), 1, max(1, high // 2))
    result = retrieval(image, text, np.array(owner), KS)
    to_text, to_image = counted(image, text, owner)
    assert values(result.image_to_text) == pytest.approx(to_text)
    assert values(result.text_to_image) == pytest.approx(to_image)
    assert (result.images, result.texts) == (40, len(owner))
    assert 0 < result.text_to_image[1].value < 1


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_blocks_in_both_directions_change_nothing(monkeypatch: pytest.MonkeyPatch, owner: list[int]) -> None:
    image = small_integers(40, 0)
    text = image[owner] + small_integers(len(owner), 1, 1)
    whole = retrieval(image, text, np.array(owner), KS)
    held = []

    class Told(module.Progress):
        def update(self, count: int) -> None:
            held.append(count)
            super().update(count)

    monkeypatch.setattr(module, "Progress", Told)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert retrieval(image, text, np.array(owner), KS) == whole
    # What is held at a time, and told.
    assert max(held) == 7 * 7
    assert sum(held) == 40 * len(owner)


def test_intervals_of_both_directions_are_over_images() -> None:
    # All five texts of an odd image describe it; those of an even one describe the odd image behind it.
    image, owner = torch.eye(40), np.repeat(np.arange(40), 5)
    text = image[torch.from_numpy(np.where(owner % 2, owner, owner + 1))]
    result = retrieval(image, text, owner, (1,))
    # An odd image has as many texts of its neighbour as near as its own, and ties count against it.
    for recall, hits in ((result.image_to_text[1], 0), (result.text_to_image[1], 20)):
        interval = binomtest(hits, 40).proportion_ci(method="wilson")
        assert recall.value == hits / 40
        assert (recall.low, recall.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_equal_up_to_rounding_is_a_tie() -> None:
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 1e-4], [1.0, 1.001e-4]]), dim=1)
    result = retrieval(image, image, np.arange(2), (1,))
    assert (result.image_to_text[1].value, result.text_to_image[1].value) == (0, 0)


def test_ties_count_against() -> None:
    result = retrieval(torch.ones(5, 3), torch.ones(5, 3), np.arange(5), (1, 4, 5))
    for recall in (result.image_to_text, result.text_to_image):
        assert values(recall) == {1: 0, 4: 0, 5: 1}
    assert (result.ties, result.tied_images, result.tied_texts) == ("strict", 5, 5)


def test_ties_go_to_the_first_item_where_that_is_the_rule() -> None:
    result = retrieval(torch.ones(5, 3), torch.ones(5, 3), np.arange(5), (1, 4, 5), "first_index")
    for recall in (result.image_to_text, result.text_to_image):
        assert values(recall) == {1: 0.2, 4: 0.8, 5: 1}
    assert (result.ties, result.tied_images, result.tied_texts) == ("first_index", 5, 5)


def test_an_image_is_found_by_any_of_its_texts() -> None:
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0], [0, 1], [0, 1]])  # The second text of image 0 fits image 1 better.
    result = retrieval(image, text, np.array([0, 0, 1]), (1,))
    assert result.text_to_image[1].value == pytest.approx(2 / 3)
    assert result.image_to_text[1].value == 0.5  # Image 1 ties with the misplaced text.


def test_perfect_embeddings_find_everything() -> None:
    result = retrieval(torch.eye(9), torch.eye(9), np.arange(9), (1,))
    assert (result.image_to_text[1].value, result.text_to_image[1].value) == (1, 1)


def test_random_embeddings_are_as_good_as_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(1000, 16, generator=generator) for _ in range(2))
    result = retrieval(image, text, np.arange(1000), (100,))
    for recall in (result.image_to_text, result.text_to_image):
        assert recall[100].low < 0.1 < recall[100].high


def test_embeddings_that_are_no_numbers_find_nothing() -> None:
    broken = torch.full((20, 4), torch.nan)
    result = retrieval(broken, broken, np.arange(20), (1,))
    assert (result.image_to_text[1].value, result.text_to_image[1].value) == (0, 0)


def test_an_empty_gallery_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        retrieval(torch.empty(0, 4), torch.empty(0, 4), np.empty(0, np.int64))


def test_chance_is_that_of_a_random_order() -> None:
    owner = np.array([0, 0, 0, 1, 2])
    found = retrieval(torch.eye(3), torch.eye(3)[owner], owner, (1, 2, 5))
    assert found.chance_text_to_image == pytest.approx({1: 1 / 3, 2: 2 / 3, 5: 1})
    # Of five texts in a random order, the first, or one of the first two, is an image's own.
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    for k in (1, 2, 5):
        hits = [(owner[order[:k]] == image).any() for order in orders for image in range(3)]
        assert found.chance_image_to_text is not None
        assert found.chance_image_to_text[k] == pytest.approx(np.mean(hits))
