"""The affine map of states: that of a ridge regression, however the rows are batched."""

import pytest
import torch

from sharelock_ray.encoders.lens import AffineMap


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """(400, 12) states with one that dwarfs the others, and (400, 5) targets that are affine in them."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 12, generator=generator) + 2
    states[:, 3] *= 1000
    matrix = torch.randn(12, 5, generator=generator) / states.std(0)[:, None]
    return states, states @ matrix + 7


def fitted(states: torch.Tensor, targets: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = AffineMap()
    for some, of in zip(states.split(batch), targets.split(batch), strict=True):
        found.add(some, of)
    return found.fit()


def test_predicts_affine_targets_but_for_the_penalty(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    states, targets = rows
    matrix, offset = fitted(states, targets, 400)
    left = (states @ matrix + offset - targets).var(0) / targets.var(0)
    assert (left < 0.003).all()


def test_does_not_depend_on_the_batches(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    for whole, batched in zip(fitted(*rows, 400), fitted(*rows, 7), strict=True):
        torch.testing.assert_close(whole, batched)


def test_ignores_a_constant_state(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    states, targets = rows
    matrix, offset = fitted(torch.cat([states, torch.full((400, 1), 5.0)], 1), targets, 400)
    torch.testing.assert_close(matrix[:12], fitted(states, targets, 400)[0])
    assert offset.isfinite().all()


def test_of_fewer_rows_than_states_is_finite(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    states, targets = rows
    for each in fitted(states[:6], targets[:6], 6):
        assert each.isfinite().all()
