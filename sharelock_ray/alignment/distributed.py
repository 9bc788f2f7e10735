"""Communication between the ranks of one training. All functions also work in a single process without a group.

Gradient convention: on each rank, `backward` gives the exact gradient of the *global* loss with respect to that rank's
own features. Parameters are replicated, so their gradients are the **sum** over ranks, not the average.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None


def world_size(group: Group = None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank(group: Group = None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def sum_over_ranks(x: torch.Tensor, group: Group = None) -> torch.Tensor:
    """Sums `x` over the ranks, in place."""
    if world_size(group) > 1:
        dist.all_reduce(x, group=group)
    return x


def max_over_ranks(x: torch.Tensor, group: Group = None) -> torch.Tensor:
    """Takes the elementwise maximum of `x` over the ranks, in place."""
    if world_size(group) > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def wait_for_all(device: torch.device, group: Group = None) -> None:
    """A barrier: returns once every rank has called it."""
    sum_over_ranks(torch.zeros(1, device=device), group).item()


def same_on_ranks(value: int, device: torch.device, group: Group = None) -> bool:
    """Whether `value` is equal on all ranks."""
    highest, lowest = max_over_ranks(torch.tensor([value, -value], device=device), group).tolist()
    return bool(highest == -lowest)


@dataclass(frozen=True)
class Rows:
    """This rank's rows in the global batch: `start … start + count` of `total`; `counts` lists all ranks' rows."""

    start: int
    count: int
    total: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, count: int, device: torch.device, group: Group = None) -> "Rows":
        """Exchanges the number of rows with the other ranks."""
        if world_size(group) == 1:
            return cls(0, count, count, (count,))
        counts = torch.zeros(world_size(group), dtype=torch.int64, device=device)
        counts[rank(group)] = count
        known = tuple(int(n) for n in sum_over_ranks(counts, group))
        return cls(sum(known[: rank(group)]), count, sum(known), known)


def gather_rows(x: torch.Tensor, rows: Rows, group: Group = None) -> torch.Tensor:
    """Gathers each rank's (count, D) rows into (total, D), in rank order. Not differentiable.

    Ranks may hold different numbers of rows; rows are padded to the largest number for communication.
    """
    if world_size(group) == 1:
        return x.detach()
    longest = max(rows.counts)
    padded = x.new_zeros((longest, *x.shape[1:]))
    padded[: rows.count] = x.detach()
    gathered = x.new_empty((len(rows.counts) * longest, *x.shape[1:]))
    dist.all_gather_into_tensor(gathered, padded, group=group)
    if min(rows.counts) == longest:
        return gathered
    return torch.cat([gathered[r * longest : r * longest + n] for r, n in enumerate(rows.counts)])


class SumOverRanks(torch.autograd.Function):
    """Differentiable sum over ranks: the backward pass sums gradients over ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return sum_over_ranks(x.clone(), group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sum_over_ranks(gradient.clone(), ctx.group), None  # type: ignore[attr-defined]
