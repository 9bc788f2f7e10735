"""The loss equals the naive formula, and several processes equal one."""

import pytest
import torch
import torch.nn.functional as F

import ranks
from sharelock_ray.alignment import contrastive_loss

DIM = 16
CASES = {
    2: [((6, 6), "neither"), ((7, 5), "neither"), ((7, 5), "image"), ((7, 5), "text")],
    3: [((4, 4, 4), "neither"), ((5, 1, 6), "neither"), ((5, 1, 6), "image"), ((8, 0, 4), "text")],
}
"""By number of processes: pairs of each, and the side that is frozen."""


def unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator, dtype=torch.float64), dim=1)


def naive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """InfoNCE as cross-entropies of the whole matrix, left to autograd."""
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def value_and_gradients(loss, image: torch.Tensor, text: torch.Tensor, scale: float) -> list[torch.Tensor]:
    inputs = [image.clone().requires_grad_(), text.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)]
    value = loss(*inputs)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs)]


def on_rank(rank: int, world_size: int, scale: float) -> list[dict[str, torch.Tensor]]:
    return [own_share(rank, split, frozen, scale) for split, frozen in CASES[world_size]]


def own_share(rank: int, split: tuple[int, ...], frozen: str, scale: float) -> dict[str, torch.Tensor]:
    start = sum(split[:rank])
    own = slice(start, start + split[rank])
    image, text = unit_rows(12, 0)[own].clone(), unit_rows(12, 1)[own].clone()
    image.requires_grad_(frozen != "image")
    text.requires_grad_(frozen != "text")
    s = torch.tensor(scale, requires_grad=True)
    loss = contrastive_loss(image, text, s)
    (3 * loss).backward()
    found = {"loss": loss.detach(), "scale": s.grad}
    return found | {name: x.grad for name, x in (("image", image), ("text", text)) if x.grad is not None}


@pytest.mark.parametrize("scale", [1.0, 14.28, 100.0])
def test_equals_the_naive_formula_in_value_and_every_gradient(scale: float) -> None:
    image, text = unit_rows(12, 0), unit_rows(12, 1)
    expected = value_and_gradients(naive, image, text, scale)
    for ours, theirs in zip(value_and_gradients(contrastive_loss, image, text, scale), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_equals_open_clip_in_float32() -> None:
    import open_clip

    image, text = unit_rows(64, 0).float(), unit_rows(64, 1).float()
    expected = value_and_gradients(open_clip.ClipLoss(), image, text, 14.28)
    for ours, theirs in zip(value_and_gradients(contrastive_loss, image, text, 14.28), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world_size", CASES)
def test_several_processes_equal_one(world_size: int) -> None:
    image, text = unit_rows(12, 0).requires_grad_(), unit_rows(12, 1).requires_grad_()
    scale = torch.tensor(14.28, requires_grad=True)
    loss = naive(image, text, scale)
    (3 * loss).backward()
    found = ranks.on_ranks(world_size, on_rank, 14.28)
    for case, (split, frozen) in enumerate(CASES[world_size]):
        shares = [rank[case] for rank in found]
        for share in shares:
            torch.testing.assert_close(share["loss"], loss.detach(), rtol=1e-9, atol=1e-9)
        for name, whole in (("image", image), ("text", text)):
            if name != frozen:
                ours = torch.cat([share[name] for share in shares])
                torch.testing.assert_close(ours, whole.grad, rtol=1e-6, atol=1e-9, msg=f"{name} {split} {frozen}")
        torch.testing.assert_close(sum(share["scale"] for share in shares), scale.grad, rtol=1e-5, atol=1e-7)


def test_a_huge_scale_does_not_overflow() -> None:
    image, text = unit_rows(12, 0).float(), unit_rows(12, 1).float()
    assert torch.isfinite(contrastive_loss(image, text, 1000.0))


def test_sides_of_other_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        contrastive_loss(unit_rows(3, 0), unit_rows(4, 1), 1.0)
