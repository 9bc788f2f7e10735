"""Ranks equal what sorting by hand gives, under each rule for ties and in blocks of any size."""

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation import ranks as module
from sharelock_ray.evaluation.ranks import nearest, place, ranks


def integers(rows: int, seed: int) -> torch.Tensor:
    """Products of such vectors are exact, and often equal."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (rows, 5))).float()


def by_hand(query: torch.Tensor, item: torch.Tensor, right: np.ndarray) -> tuple[list[int], list[bool]]:
    """`first_index` by sorting: wrong items before the first right one. And whether it is tied with a wrong one.

    Args:
        right: (Q, C) bool.
    """
    ahead, tied = [], []
    for similarity, is_right in zip((query @ item.T).tolist(), right, strict=True):
        order = sorted(range(len(similarity)), key=lambda c: (-similarity[c], c))
        match = next(c for c in order if is_right[c])
        ahead.append(order.index(match))
        tied.append(any(similarity[c] == similarity[match] for c in order if not is_right[c]))
    return ahead, tied


@pytest.mark.parametrize("block", [2048, 7, 1])
def test_first_index_is_the_order_of_a_stable_sort(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    owner = np.random.default_rng(1).permutation([i for i in range(30) for _ in range(1 + i % 3)])
    image = integers(30, 0)
    text = image[torch.from_numpy(owner)] + integers(len(owner), 2)
    right = owner == np.arange(30)[:, None]
    first, strict = ranks(image, text, owner, "first_index"), ranks(image, text, owner)
    for found, other, expected in zip(
        first, strict, (by_hand(image, text, right), by_hand(text, image, right.T)), strict=True
    ):
        assert (found.ahead.tolist(), found.tied.tolist()) == expected
        # The rule changes ranks of tied samples only.
        assert other.tied.tolist() == expected[1]
        assert np.array_equal(found.ahead[~found.tied], other.ahead[~found.tied])
        assert (found.ahead <= other.ahead).all()
        assert found.tied.any()
        assert not found.tied.all()


@pytest.mark.parametrize(("ties", "ahead"), [("strict", [2, 2, 2]), ("first_index", [0, 1, 2])])
def test_all_alike_fail_or_keep_their_order(ties: module.Ties, ahead: list[int]) -> None:
    for found in ranks(torch.ones(3, 4), torch.ones(3, 4), np.arange(3), ties):
        assert found.ahead.tolist() == ahead
        assert found.tied.all()


@pytest.mark.parametrize("ties", ["strict", "first_index"])
class TestNoNumber:
    def test_is_an_error_under_every_rule(self, ties: module.Ties) -> None:
        broken = torch.full((4, 3), torch.nan)
        for found in ranks(broken, broken, np.arange(4), ties):
            assert (found.ahead >= 3).all()
            assert not found.tied.any()

    def test_of_a_wrong_item_counts_against_every_query(self, ties: module.Ties) -> None:
        image = torch.eye(3)
        image[2] = torch.nan
        _, by_text = ranks(image, torch.eye(3), np.arange(3), ties)
        assert by_text.ahead[:2].tolist() == [1, 1]


@pytest.mark.parametrize("ties", ["strict", "first_index"])
def test_all_texts_rank_before_the_match_of_an_image_without_any(ties: module.Ties) -> None:
    by_image, _ = ranks(torch.eye(3), torch.eye(3)[:2], np.arange(2), ties)
    assert by_image.ahead.tolist() == [0, 0, 2]


def test_a_single_query_with_a_tie_is_placed() -> None:
    similarity = torch.tensor([[-torch.inf, 0.5, 0.4]])
    found = place(similarity, torch.tensor([0.5]), torch.tensor([0]), "first_index")
    assert (found.ahead.tolist(), found.tied.tolist()) == ([0], [True])


@pytest.mark.parametrize("block", [2048, 7, 1])
def test_nearest_item_is_the_first_of_equal_ones(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    query, item = integers(30, 0), integers(50, 1)
    expected = [row.index(max(row)) for row in (query @ item.T).tolist()]
    assert nearest(query, item).tolist() == expected
    assert nearest(torch.full((2, 5), torch.nan), item).tolist() == [0, 0]
