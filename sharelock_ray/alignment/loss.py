"""The symmetric InfoNCE loss (CLIP, arXiv 2103.00020) over the gathered global batch, with gradients in closed form.

With logits S = s X Yᵀ (N x N), r_i = logsumexp_j S_ij and c_j = logsumexp_i S_ij, the loss is

    L = 1/2N Σ_i (r_i + c_i - 2 S_ii),        dL/dS_ij = 1/2N (exp(S_ij - r_i) + exp(S_ij - c_j) - 2 [i = j])

Each rank holds the rows of S that belong to its own pairs, against the columns of all ranks: row statistics are local,
column statistics are combined. The product with the other side's gathered rows is computed once, for both directions.
"""

from typing import Any

import torch

from sharelock_ray.alignment.distributed import Group, Rows, gather_rows, max_over_ranks, sum_over_ranks


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor | float, group: Group = None
) -> torch.Tensor:
    """Mean symmetric InfoNCE over the global batch; pair i of the image rows belongs to row i of the text.

    Args:
        image: (n, D) unit vectors, this rank's rows; n may differ between ranks.
        text: (n, D) unit vectors.
        logit_scale: scalar s that multiplies the cosines (1 / temperature).
        group: process group; None is the default one, or this process alone.

    Returns:
        scalar, the same on every rank. Its gradients by `image` and `text` are exact for the global loss; those of
        parameters, `logit_scale` included, are to be summed over ranks (see `alignment.distributed`).

    Raises:
        ValueError: the two sides differ in shape.
    """
    if image.shape != text.shape or image.dim() != 2:
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must both be (n, D)")
    scale = torch.as_tensor(logit_scale, dtype=torch.float32, device=image.device)
    # The loss is symmetric: where one side is frozen, that side's rows are gathered, and no gradient has to travel.
    if image.requires_grad and not text.requires_grad:
        return _InfoNCE.apply(image, text, scale, group)
    return _InfoNCE.apply(text, image, scale, group)


class _InfoNCE(torch.autograd.Function):
    """Computes the gradients with the loss, while the logits are at hand, so that no N x N matrix is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, group: Group) -> torch.Tensor:
        rows = Rows.of(len(x), x.device, group)
        columns = gather_rows(y, rows, group)
        own = torch.arange(rows.count, device=x.device)
        s = scale.to(_accumulation_type(x))
        logits = (x.detach() @ columns.T).to(s.dtype).mul_(s)
        diagonal = logits[own, rows.start + own].clone()
        row_lse = logits.logsumexp(1)
        column_max = max_over_ranks(_amax(logits), group)
        column_lse = sum_over_ranks((logits - column_max).exp_().sum(0), group).log_() + column_max
        own_columns = slice(rows.start, rows.start + rows.count)
        total = (row_lse + column_lse[own_columns] - 2 * diagonal).sum()
        loss = sum_over_ranks(total, group) / (2 * rows.total)
        if any(ctx.needs_input_grad):
            gradient = (logits - row_lse[:, None]).exp_()
            gradient += (logits - column_lse).exp_()
            gradient[own, rows.start + own] -= 2
            gradient /= 2 * rows.total
            by_scale = (gradient * logits).sum() / s
            gradient = gradient.mul_(s).to(x.dtype)
            by_x = gradient @ columns if ctx.needs_input_grad[0] else None
            by_y = None
            if ctx.needs_input_grad[1]:
                by_y = sum_over_ranks(gradient.T @ x.detach(), group)[own_columns]
            ctx.gradients = by_x, by_y, by_scale.to(scale.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        by_x, by_y, by_scale = ctx.gradients
        scaled = [None if g is None else g * gradient.to(g.dtype) for g in (by_x, by_y, by_scale)]
        return (*scaled, None)


def _accumulation_type(x: torch.Tensor) -> torch.dtype:
    """Statistics of half-precision features are kept in float32; float64 stays float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _amax(logits: torch.Tensor) -> torch.Tensor:
    """(N,) maximum of each column; minus infinity on a rank without rows."""
    if len(logits):
        return logits.amax(0)
    return logits.new_full((logits.shape[1],), float("-inf"))
