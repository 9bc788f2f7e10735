"""What the workers of one training tell each other. Everything works on a single process without a process group.

Gradient convention of the package: on each rank, `backward` gives the exact derivative of the *global* loss by that
rank's own features; parameters are replicated, so their gradients are the **sum** over ranks. Nothing is averaged.
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
    """Returns once every rank has come here."""
    sum_over_ranks(torch.zeros(1, device=device), group).item()


def same_on_ranks(value: int, device: torch.device, group: Group = None) -> bool:
    """Whether every rank has this `value`."""
    highest, lowest = max_over_ranks(torch.tensor([value, -value], device=device), group).tolist()
    return bool(highest == -lowest)


@dataclass(frozen=True)
class Rows:
    """Where this rank's rows lie in the global batch: `start … start + count` of `total`; `counts` of every rank."""

    start: int
    count: int
    total: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, count: int, device: torch.device, group: Group = None) -> "Rows":
        """Tells the other ranks how many rows this one has, and learns theirs."""
        if world_size(group) == 1:
            return cls(0, count, count, (count,))
        counts = torch.zeros(world_size(group), dtype=torch.int64, device=device)
        counts[rank(group)] = count
        known = tuple(int(n) for n in sum_over_ranks(counts, group))
        return cls(sum(known[: rank(group)]), count, sum(known), known)


def gather_rows(x: torch.Tensor, rows: Rows, group: Group = None) -> torch.Tensor:
    """(total, D) rows of all ranks, in rank order, from this rank's (count, D). Not differentiable.

    Ranks may hold different numbers of rows: they are padded to the largest for the way.
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
    """Differentiable sum over ranks: what each rank does with the sum comes back to all of them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        return sum_over_ranks(x.clone(), group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sum_over_ranks(gradient.clone(), ctx.group), None  # type: ignore[attr-defined]
