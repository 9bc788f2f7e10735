"""The losses equal the naive formulas and open_clip's, and several processes equal one, in value and every gradient."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import ranks
from sharelock_ray.alignment import contrastive_loss, loss
from sharelock_ray.alignment.loss import sigmoid_loss

DIM, PAIRS = 16, 12
IDS = torch.tensor([7, 1, 7, 3, 4, 1, 5, 7, 8, 9, 10, 3])
"""Pairs of a batch with the same text or label, also across ranks."""
TOLERANCE = {
    torch.float64: {"rtol": 1e-6, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 2e-6},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-5},
}


@dataclass(frozen=True)
class Case:
    """How the pairs lie on ranks, and what is computed of them."""

    split: tuple[int, ...]
    frozen: str = "neither"
    dtype: torch.dtype = torch.float64
    kind: str = "infonce"
    scale: float = 14.28
    budget: int | None = None
    shared: bool = False

    def loss(self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, **settings):
        if self.kind == "infonce":
            return contrastive_loss(image, text, scale, memory_budget=self.budget, **settings)
        return sigmoid_loss(image, text, scale, bias, memory_budget=self.budget, **settings)


SPLITS = [(12,), (6, 6), (7, 5), (4, 4, 4), (5, 1, 6), (8, 0, 4), (3, 3, 3, 3), (1, 6, 3, 2)]
CASES = [
    *(Case(split, dtype=dtype) for split in SPLITS for dtype in TOLERANCE),
    *(Case(split, frozen=side) for split in SPLITS for side in ("image", "text", "both")),
    *(Case(split, budget=budget, scale=scale) for split in SPLITS for budget in (64, 400) for scale in (14.28, 100.0)),
    *(Case(split, scale=100.0, dtype=dtype) for split in SPLITS for dtype in (torch.float64, torch.float32)),
    *(Case(split, shared=True, scale=scale) for split in SPLITS for scale in (14.28, 100.0)),
    *(Case(split, shared=True, dtype=torch.float32, budget=64) for split in SPLITS),
    *(Case(split, kind="sigmoid", shared=shared) for split in SPLITS for shared in (False, True)),
    *(Case(split, kind="sigmoid", dtype=dtype, budget=64) for split in SPLITS for dtype in TOLERANCE),
    Case((7, 5), kind="sigmoid", frozen="image"),
]


def unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator, dtype=torch.float64), dim=1)


def together(ids: torch.Tensor | None) -> torch.Tensor:
    """(N, N) bool: which pairs are positives."""
    return torch.eye(PAIRS, dtype=torch.bool) if ids is None else ids[:, None] == ids


def naive(case: Case, image, text, scale, bias) -> torch.Tensor:
    """The formulas of the papers, of the whole matrix, left to autograd."""
    positive = together(IDS if case.shared else None).double()
    if case.kind == "sigmoid":
        sign = 2 * positive - 1
        return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / PAIRS
    logits = scale * image @ text.T
    target = positive / positive.sum(1, keepdim=True)
    return -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum() / (2 * PAIRS)


def theirs(case: Case, image, text, scale, bias) -> torch.Tensor:
    # Not above, because every process of a group imports this module.
    from open_clip.loss import ClipLoss, SigLipLoss

    if case.kind == "sigmoid":
        return SigLipLoss()(image, text, scale, bias)
    return ClipLoss()(image, text, scale)


def inputs(case: Case, own: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Leaves, those of a frozen side without gradient; features as they are after rounding to the case's type."""
    sides = {"image": unit_rows(PAIRS, 0)[own], "text": unit_rows(PAIRS, 1)[own]}
    leaves = {
        name: value.to(case.dtype).requires_grad_(case.frozen not in (name, "both")) for name, value in sides.items()
    }
    return leaves | {
        "scale": torch.tensor(case.scale, requires_grad=True),
        "bias": torch.tensor(-3.0, requires_grad=True),
    }


def value_and_gradients(found: torch.Tensor, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # What the loss goes into may scale it.
    (3 * found).backward()
    return {"loss": found.detach()} | {name: x.grad for name, x in leaves.items() if x.grad is not None}


def expected_of(case: Case, formula) -> dict[str, torch.Tensor]:
    given = inputs(case)
    wide = {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in given.items()}
    return value_and_gradients(formula(case, **wide), wide)


def small_tiles() -> None:
    """Several tiles, and pieces of tiles, of a dozen rows."""
    loss._TILE["cpu"], loss._PIECE["cpu"] = (4, 8), 3


def on_rank(rank: int, world_size: int) -> list[dict[str, torch.Tensor]]:
    """This rank's part of every case, each in a group of as many ranks as it has parts."""
    small_tiles()
    groups = {size: dist.new_group(list(range(size))) for size in range(1, world_size)} | {world_size: None}
    found = []
    for case in CASES:
        if rank < len(case.split):
            start = sum(case.split[:rank])
            own = slice(start, start + case.split[rank])
            leaves = inputs(case, own)
            ids = IDS[own] if case.shared else None
            value = case.loss(**leaves, group=groups[len(case.split)], positives=ids)
            found.append(value_and_gradients(value, leaves))
        else:
            found.append({})
    return found


@pytest.fixture(scope="module")
def on_ranks() -> list[list[dict[str, torch.Tensor]]]:
    """By case and rank: one group of processes for all cases, because starting it takes longest."""
    found = ranks.on_ranks(4, on_rank)
    return [[rank[index] for rank in found[: len(case.split)]] for index, case in enumerate(CASES)]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case)[5:-1] for case in CASES])
def test_equals_the_naive_formula_on_any_number_of_processes(on_ranks, index: int) -> None:
    case, shares = CASES[index], on_ranks[index]
    expected = expected_of(case, naive)
    tolerance = TOLERANCE[case.dtype]
    for share in shares:
        torch.testing.assert_close(share["loss"].double(), expected["loss"], rtol=tolerance["rtol"] / 10, atol=1e-5)
        assert torch.equal(share["loss"], shares[0]["loss"])
    for name in ("image", "text"):
        assert all((name in share) == (name in expected) for share in shares)
        if name in expected:
            ours = torch.cat([share[name] for share in shares])
            assert ours.dtype == case.dtype
            torch.testing.assert_close(ours.double(), expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("scale", "bias") if case.kind == "sigmoid" else ("scale",):
        ours = sum(share[name] for share in shares).double()
        torch.testing.assert_close(ours, expected[name], rtol=max(1e-5, tolerance["rtol"]), atol=1e-6)


@pytest.mark.parametrize("index", [i for i, case in enumerate(CASES) if not case.shared])
def test_equals_open_clip_on_any_number_of_processes(on_ranks, index: int) -> None:
    case, shares = CASES[index], on_ranks[index]
    expected = expected_of(case, theirs)
    torch.testing.assert_close(shares[0]["loss"].double(), expected["loss"], rtol=1e-4, atol=1e-5)
    tolerance = TOLERANCE[case.dtype]
    for name in expected.keys() & {"image", "text"}:
        ours = torch.cat([share[name] for share in shares]).double()
        torch.testing.assert_close(ours, expected[name], **tolerance)
    for name in expected.keys() & {"scale", "bias"}:
        ours = sum(share[name] for share in shares).double()
        torch.testing.assert_close(ours, expected[name], rtol=max(1e-5, tolerance["rtol"]), atol=1e-6)


class TestMemory:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(loss._TILE, "cpu", (16, 16))

    @pytest.mark.parametrize(("budget", "visits"), [(64 * 64 * 4, 16), (64 * 64 * 4 - 1, 32)])
    def test_decides_whether_tiles_are_kept_or_computed_again(
        self, monkeypatch: pytest.MonkeyPatch, budget: int, visits: int
    ) -> None:
        products = []
        monkeypatch.setattr(loss, "_multiply", lambda *args, of=loss._multiply: (products.append(1), of(*args)))
        image = unit_rows(64, 0).float().requires_grad_()
        contrastive_loss(image, unit_rows(64, 1).float(), 14.28, memory_budget=budget)
        assert len(products) == visits

    def test_of_validation_needs_one_tile_and_one_visit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        products = []
        monkeypatch.setattr(loss, "_multiply", lambda *args, of=loss._multiply: (products.append(args[3]), of(*args)))
        contrastive_loss(unit_rows(64, 0), unit_rows(64, 1), 14.28)
        assert len(products) == 16
        assert len({tile.data_ptr() for tile in products}) == 1


def test_autocast_around_it_changes_nothing() -> None:
    image, text = unit_rows(12, 0).float().requires_grad_(), unit_rows(12, 1).float()
    plain = contrastive_loss(image, text, 14.28)
    with torch.autocast("cpu", torch.bfloat16):
        within = contrastive_loss(image, text, 14.28)
    assert torch.equal(within, plain)


def test_rows_of_any_length_are_right_too() -> None:
    # Their logits, up to a thousand, would overflow without a maximum.
    image, text = 10 * unit_rows(12, 0).float().requires_grad_(), unit_rows(12, 1).float()
    logits = 100 * image.detach() @ text.T
    target = torch.arange(12)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, 100.0).detach(), expected, rtol=1e-5, atol=1e-4)


def test_ids_that_all_differ_change_nothing() -> None:
    image, text = unit_rows(12, 0), unit_rows(12, 1)
    with_ids = contrastive_loss(image, text, 14.28, positives=torch.randperm(12))
    torch.testing.assert_close(with_ids, contrastive_loss(image, text, 14.28))


def test_a_gradient_of_the_gradient_is_refused() -> None:
    image = unit_rows(12, 0).requires_grad_()
    value = contrastive_loss(image, unit_rows(12, 1), 14.28)
    (gradient,) = torch.autograd.grad(value, image, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("image", "text", "ids", "message"),
    [
        (unit_rows(3, 0), unit_rows(4, 1), None, "must both be"),
        (unit_rows(3, 0), unit_rows(3, 1).float(), None, "of one type"),
        (unit_rows(3, 0), unit_rows(3, 1), torch.arange(4), "an id for each of 3 rows"),
    ],
)
@pytest.mark.parametrize("of", [contrastive_loss, lambda *args, **ids: sigmoid_loss(*args, -10.0, **ids)])
def test_what_does_not_fit_together_is_refused(of, image, text, ids, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(image, text, 1.0, positives=ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("dtype", "error"),
    # A GPU's products take derivatives by logits in bfloat16: beside what storing the gradients so costs, little more.
    [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 4e-3)],
    ids=str,
)
@pytest.mark.parametrize("scale", [14.28, 100.0])
def test_a_gpu_gives_what_a_cpu_gives(dtype: torch.dtype, error: float, scale: float) -> None:
    case = Case((PAIRS,), dtype=dtype, scale=scale)
    given = {name: x.detach().cuda().requires_grad_() for name, x in inputs(case).items()}
    found = value_and_gradients(case.loss(**given), given)
    expected = expected_of(case, naive)
    for name in ("loss", "image", "text"):
        difference = found[name].cpu().double() - expected[name]
        assert difference.norm() <= error * expected[name].norm()
