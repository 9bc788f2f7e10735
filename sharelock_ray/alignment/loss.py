"""Contrastive losses over the gathered global batch, with gradients in closed form.

InfoNCE (CLIP, arXiv 2103.00020). With logits S = s X Yᵀ (N x N), r_i = logsumexp_j S_ij and c_j = logsumexp_i S_ij,

    L = 1/2N (Σ_i r_i + Σ_j c_j - 2 Σ_ij T_ij S_ij)     dL/dS_ij = 1/2N (exp(S_ij - r_i) + exp(S_ij - c_j) - 2 T_ij)

where T_ij = [i = j]; if pairs share an id, T_ij = [id_i = id_j] / (pairs with that id): the mean over positives outside
the logarithm (SupCon, arXiv 2004.11362, equation 2), in both directions (UniCL, arXiv 2204.03610).

Sigmoid (SigLIP, arXiv 2303.15343, section 3.2). With S = s X Yᵀ + b and T_ij = [i = j], or [id_i = id_j],

    L = 1/N Σ_ij (softplus(S_ij) - T_ij S_ij)           dL/dS_ij = 1/N (sigmoid(S_ij) - T_ij)

Each rank computes the rows of S of its own pairs against the columns of all ranks, tile by tile: row statistics are
local, column statistics are combined over ranks. One product gives the logits of both directions, and one more the
gradient of each trained side. InfoNCE visits each tile twice, since its gradient needs the statistics of whole rows and
columns: tiles are stored in between if they fit the memory budget, else recomputed.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sharelock_ray.alignment.distributed import Group, Rows, gather_rows, max_over_ranks, sum_over_ranks

_TILE = {"cpu": (2048, 4096), "cuda": (8192, 8192)}
"""Rows and columns of a tile: 32 MiB of float32 on a CPU; larger on a GPU, for fewer kernel launches."""
_PIECE = {"cpu": 64, "cuda": 8192}
"""Rows of a tile processed at a time between products: on a CPU they fit the cache of a core."""
_DOT_ROWS = {"cpu": 1024, "cuda": 16384}
"""Rows multiplied at a time in `_dot`."""
_CPU_BUDGET = 2 << 30


def contrastive_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor | float,
    group: Group = None,
    *,
    positives: torch.Tensor | None = None,
    memory_budget: int | None = None,
) -> torch.Tensor:
    """Mean symmetric InfoNCE over the global batch; row i of the images is paired with row i of the texts.

    For half-precision features, logits, statistics and the loss are float32. Products use float32 on a CPU and the
    features' own type on a GPU.

    Args:
        image: (n, D) unit vectors, this rank's rows; n may differ between ranks.
        text: (n, D) unit vectors.
        logit_scale: scalar s that multiplies the cosines (1 / temperature).
        group: process group; None: the default group, or this process alone.
        positives: (n,) int64 ids. Rows with equal ids, on any rank, are positives of each other.
        memory_budget: bytes for logits per rank. If they do not fit, one more product is computed. None: 2 GiB on a
            CPU, half of the free memory on a GPU.

    Returns:
        scalar, the same on every rank. Gradients with respect to `image` and `text` are exact for the global loss; sum
        gradients of parameters, including `logit_scale`, over ranks (see `alignment.distributed`).

    Raises:
        ValueError: the two sides differ in shape or type, or `positives` has the wrong shape.
    """
    _check(image, text, positives)
    scale = _scalar(logit_scale, image)
    # The loss is symmetric: gathering the frozen side avoids communicating a gradient.
    if image.requires_grad and not text.requires_grad:
        return _InfoNCE.apply(image, text, scale, positives, group, memory_budget)
    return _InfoNCE.apply(text, image, scale, positives, group, memory_budget)


def sigmoid_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    group: Group = None,
    *,
    positives: torch.Tensor | None = None,
    memory_budget: int | None = None,
) -> torch.Tensor:
    """Sigmoid loss over the global batch: a binary classification of each of the N x N pairs.

    Each tile is visited once, so memory is that of one tile, or `memory_budget` if that is less.

    Args:
        logit_bias: scalar b that is added to the scaled cosines.

    Other arguments, the result and errors are as for `contrastive_loss`.
    """
    _check(image, text, positives)
    scale, bias = _scalar(logit_scale, image), _scalar(logit_bias, image)
    if image.requires_grad and not text.requires_grad:
        return _Sigmoid.apply(image, text, scale, bias, positives, group, memory_budget)
    return _Sigmoid.apply(text, image, scale, bias, positives, group, memory_budget)


class _InfoNCE(torch.autograd.Function):
    """Computes gradients in the forward pass, so that no N x N matrix is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        scale: torch.Tensor,
        positives: torch.Tensor | None,
        group: Group,
        budget: int | None,
    ) -> torch.Tensor:
        batch = _Batch(x, y, group)
        targets = _Targets(batch, positives, group, mean=True)
        needs_gradient = any(ctx.needs_input_grad)
        factor, bounded = _bounded(batch, scale)
        logits = _Logits(batch, factor, budget, visits=2 if needs_gradient else 1)
        row_lse, column_lse = _bounded_statistics(logits) if bounded else _statistics(logits)
        column_lse = _logsumexp_over_ranks(column_lse, group)
        local = row_lse.double().sum() + column_lse[batch.own].double().sum() - 2 * factor * targets.cosines()
        if needs_gradient:
            gradients = _Gradients(batch, by_y=ctx.needs_input_grad[1])
            row_weight, column_weight = (-row_lse).exp(), (-column_lse).exp()
            for rows, columns, tile in logits.tiles():
                for own, piece in _pieces(rows, tile):
                    if bounded:
                        exponential = piece if logits.kept else piece.exp_()
                        exponential.mul_(row_weight[own, None] + column_weight[columns])
                    else:
                        by_column = (piece - column_lse[columns]).exp_()
                        piece.sub_(row_lse[own, None]).exp_().add_(by_column)
                    targets.subtract(piece, own, columns, 2)
                gradients.add(rows, columns, tile)
            ctx.gradients = gradients.of_mean(factor, 2 * batch.rows.total, group)
        return (sum_over_ranks(local, group) / (2 * batch.rows.total)).to(batch.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*_times(gradient, ctx.gradients), None, None, None)


class _Sigmoid(torch.autograd.Function):
    """Computes gradients in the forward pass, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        positives: torch.Tensor | None,
        group: Group,
        budget: int | None,
    ) -> torch.Tensor:
        batch = _Batch(x, y, group)
        targets = _Targets(batch, positives, group, mean=False)
        needs_gradient = any(ctx.needs_input_grad)
        gradients = _Gradients(batch, by_y=ctx.needs_input_grad[1])
        by_bias = torch.zeros((), dtype=torch.float64, device=x.device)
        factor, offset = torch.stack([scale, bias]).tolist()
        local = -factor * targets.cosines() - offset * targets.count()
        logits = _Logits(batch, factor, budget, visits=1)
        for rows, columns, tile in logits.tiles():
            for own, piece in _pieces(rows, tile):
                local += F.softplus(piece.add_(offset)).sum(dtype=torch.float64)
                if needs_gradient:
                    targets.subtract(piece.sigmoid_(), own, columns, 1)
                    by_bias += piece.sum(dtype=torch.float64)
            if needs_gradient:
                gradients.add(rows, columns, tile)
        total = batch.rows.total
        if needs_gradient:
            ctx.gradients = (*gradients.of_mean(factor, total, group), (by_bias / total).to(bias.dtype))
        return (sum_over_ranks(local, group) / total).to(batch.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*_times(gradient, ctx.gradients), None, None, None)


class _Batch:
    """This rank's rows of one side, x (n, D), and all ranks' rows of the other, y (N, D), in the type of the
    products."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, group: Group) -> None:
        self.rows = Rows.of(len(x), x.device, group)
        self.own = slice(self.rows.start, self.rows.start + self.rows.count)
        self.given = x.dtype
        # Type of logits and statistics. Logits rounded to bfloat16 change gradients by a hundredth.
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        # CPUs without matrix units for bfloat16 multiply it more slowly than float32.
        product = x.dtype if x.is_cuda else self.dtype
        self.x, self.y = x.detach().to(product), gather_rows(y, self.rows, group).to(product)


class _Logits:
    """s X Yᵀ of a batch, tile by tile.

    With two visits and enough `budget` (bytes), each tile has its own memory, and the second visit finds it as the
    first one left it (`kept`). Otherwise all tiles share one buffer and are recomputed at each visit.
    """

    def __init__(self, batch: _Batch, scale: float, budget: int | None, visits: int) -> None:
        self._batch, self._scale = batch, scale
        n, total = batch.rows.count, batch.rows.total
        size = batch.dtype.itemsize
        budget = _budget(batch.x.device) if budget is None else budget
        self._store = visits > 1 and n * total * size <= budget
        height, width = _TILE[batch.x.device.type]
        while height * width * size > budget and min(height, width) > 1:
            height, width = height // 2, width // 2
        self._places = [
            (slice(i, min(i + height, n)), slice(j, min(j + width, total)))
            for i in range(0, n, height)
            for j in range(0, total, width)
        ]
        elements = n * total if self._store else min(height, n) * min(width, total)
        self._memory = torch.empty(elements, dtype=batch.dtype, device=batch.x.device)
        self.kept = False

    def zeros(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) and (N,) zeros, for row and column statistics."""
        return self._memory.new_zeros(len(self._batch.x)), self._memory.new_zeros(len(self._batch.y))

    def tiles(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Yields (rows, columns, tile): slices of this rank's rows and of all columns, and a writable tile."""
        offset = 0
        for rows, columns in self._places:
            shape = rows.stop - rows.start, columns.stop - columns.start
            tile = self._memory[offset : offset + shape[0] * shape[1]].view(shape)
            if not self.kept:
                _multiply(self._batch.x[rows], self._batch.y[columns].T, self._scale, tile)
            yield rows, columns, tile
            offset += shape[0] * shape[1] if self._store else 0
        self.kept = self._store


class _Targets:
    """The targets T of a batch; with `mean`, each row of T sums to one."""

    def __init__(self, batch: _Batch, positives: torch.Tensor | None, group: Group, mean: bool) -> None:
        self._batch = batch
        self._ids: torch.Tensor | None = None
        if positives is not None:
            ids = gather_rows(positives, batch.rows, group)
            _, self._ids, counts = ids.unique(return_inverse=True, return_counts=True)
            self._classes = len(counts)
            self._count = counts[self._ids[batch.own]].to(batch.dtype)
            self._weight = 1 / self._count if mean else torch.ones_like(self._count)

    def cosines(self) -> torch.Tensor:
        """Σ_ij T_ij x_i · y_j over this rank's rows, from the sums of y over each id, without an n x N matrix."""
        x, y = self._batch.x.to(self._batch.dtype), self._batch.y.to(self._batch.dtype)
        if self._ids is None:
            return _dot(x, y[self._batch.own])
        sums = y.new_zeros((self._classes, y.shape[1])).index_add_(0, self._ids, y)
        return _dot(x, sums[self._ids[self._batch.own]] * self._weight[:, None])

    def count(self) -> float:
        """Number of positives of this rank's rows."""
        return self._batch.rows.count if self._ids is None else float(self._count.sum(dtype=torch.float64))

    def subtract(self, piece: torch.Tensor, own: slice, columns: slice, factor: float) -> None:
        """Subtracts `factor` T from the piece of rows `own` and `columns`."""
        first = self._batch.rows.start
        if self._ids is None:
            piece.diagonal(first + own.start - columns.start).sub_(factor)
            return
        equal = self._ids[first + own.start : first + own.stop, None] == self._ids[columns]
        piece.sub_(equal * (factor * self._weight[own, None]))


class _Gradients:
    """Accumulates G Y and, if the other side is trained, Gᵀ X over the tiles of G, the gradient of the logits."""

    def __init__(self, batch: _Batch, by_y: bool) -> None:
        self._batch = batch
        self._by_x = batch.x.new_zeros(batch.x.shape, dtype=batch.dtype)
        self._by_y = batch.y.new_zeros(batch.y.shape, dtype=batch.dtype) if by_y else None

    def add(self, rows: slice, columns: slice, tile: torch.Tensor) -> None:
        tile = tile.to(self._batch.x.dtype)
        _add_product(self._by_x[rows], tile, self._batch.y[columns])
        if self._by_y is not None:
            _add_product(self._by_y[columns], tile.T, self._batch.x[rows])

    def of_mean(self, scale: float, terms: int, group: Group) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Gradients with respect to this rank's rows of both sides, and this rank's share of that of the scale."""
        by_scale = (_dot(self._batch.x, self._by_x) / terms).float()
        factor = scale / terms
        by_y = None
        if self._by_y is not None:
            by_y = sum_over_ranks(self._by_y, group)[self._batch.own].mul_(factor).to(self._batch.given)
        return self._by_x.mul_(factor).to(self._batch.given), by_y, by_scale


def _bounded(batch: _Batch, scale: torch.Tensor) -> tuple[float, bool]:
    """The scale, and whether sums of exponentials of the logits, and their reciprocals, stay within range."""
    longest = [torch.cat([side.norm(dim=1), side.new_zeros(1)]).amax() for side in (batch.x, batch.y)]
    # One transfer, since each one synchronises with the GPU.
    factor, x, y = torch.stack([scale, *longest]).tolist()
    return factor, abs(factor) * x * y < 0.7 * math.log(torch.finfo(batch.dtype).max)


def _bounded_statistics(logits: _Logits) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) and (N,) logsumexp of this rank's logits by row and by column; leaves exponentials in the tiles.

    No maximum is subtracted, so that one exponential serves both.
    """
    rows_sum, columns_sum = logits.zeros()
    for rows, columns, tile in logits.tiles():
        for own, piece in _pieces(rows, tile):
            piece.exp_()
            rows_sum[own] += piece.sum(1)
            columns_sum[columns] += piece.sum(0)
    return rows_sum.log_(), columns_sum.log_()


def _statistics(logits: _Logits) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_bounded_statistics`, for logits of any size; leaves logits in the tiles."""
    by_row, by_column = (zeros.fill_(-math.inf) for zeros in logits.zeros())
    for rows, columns, tile in logits.tiles():
        by_row[rows] = by_row[rows].logaddexp(tile.logsumexp(1))
        by_column[columns] = by_column[columns].logaddexp(tile.logsumexp(0))
    return by_row, by_column


def _logsumexp_over_ranks(x: torch.Tensor, group: Group) -> torch.Tensor:
    highest = max_over_ranks(x.clone(), group)
    return sum_over_ranks((x - highest).exp_(), group).log_().add_(highest)


def _pieces(rows: slice, tile: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields (own, piece): a slice of this rank's rows, and these rows of a tile."""
    height = _PIECE[tile.device.type]
    for start in range(0, len(tile), height):
        piece = tile[start : start + height]
        yield slice(rows.start + start, rows.start + start + len(piece)), piece


def _multiply(a: torch.Tensor, b: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out = factor a b, accumulated in the type of `out`."""
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=0, alpha=factor)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, beta=0, alpha=factor, out=out)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, accumulated in the type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of all elementwise products in float64, in blocks of rows to limit memory."""
    rows = _DOT_ROWS[a.device.type]
    parts = [(x * y).sum(dtype=torch.float64) for x, y in zip(a.split(rows), b.split(rows), strict=True)]
    return torch.stack(parts).sum()


def _times(gradient: torch.Tensor, values: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
    return [None if value is None else value * gradient.to(value.dtype) for value in values]


def _budget(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_BUDGET


def _scalar(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float32, device=like.device)


def _check(image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None) -> None:
    if image.shape != text.shape or image.dim() != 2 or image.dtype != text.dtype:
        sides = [f"{tuple(side.shape)} {side.dtype}" for side in (image, text)]
        raise ValueError(f"image {sides[0]} and text {sides[1]} must both be (n, D), of one type")
    if positives is not None and positives.shape != image.shape[:1]:
        raise ValueError(f"positives {tuple(positives.shape)} must be (n,), an id for each of {len(image)} rows")
