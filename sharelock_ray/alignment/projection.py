"""The trained projection: an MLP whose numbers do not depend on how many workers share a batch."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from sharelock_ray.alignment.distributed import Group, Rows, SumOverRanks, world_size
from sharelock_ray.alignment.spec import ProjectionSpec

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Dropout masks are drawn for blocks of so many rows of the global batch, whichever ranks those rows lie on.
_DROPOUT_BLOCK = 256


@dataclass(frozen=True)
class GlobalBatch:
    """The global batch that a forward pass in training belongs to.

    `rows` is this rank's place in it; `seed` and `step` decide the dropout masks.
    """

    rows: Rows
    seed: int
    step: int
    group: Group = None


class Projection(nn.Module):
    """`depth` linear layers; all but the last are followed by norm, activation and dropout. Depth 0 is the identity.

    Args:
        in_dim: width of the frozen embedding.
        out_dim: width of the shared space; for depth 0 it must be `in_dim`.
        depth, width, activation, norm, dropout: see `ProjectionSpec`.

    Raises:
        ValueError: depth 0 between different widths, or a value that `ProjectionSpec` refuses.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        depth: int = 4,
        width: int = 4096,
        activation: str = "relu",
        norm: str = "batch",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.spec = ProjectionSpec.model_validate(
            {"depth": depth, "width": width, "activation": activation, "norm": norm, "dropout": dropout}
        )
        if depth == 0 and in_dim != out_dim:
            raise ValueError(f"a locked side of width {in_dim} cannot enter a shared space of width {out_dim}")
        widths = [in_dim, *[width] * (depth - 1), out_dim] if depth else []
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        kind = {"batch": GlobalBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}[norm]
        self.norms = nn.ModuleList(kind(width) for _ in range(depth - 1))
        self._activation = _ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor, batch: GlobalBatch | None = None) -> torch.Tensor:
        """Projects (n, in_dim) to unit vectors (n, out_dim).

        Args:
            batch: in training over several workers, or for reproducible dropout: the global batch these rows are of.
        """
        for layer, norm in enumerate(self.norms):
            x = self.linears[layer](x)
            x = norm(x, batch) if isinstance(norm, GlobalBatchNorm) else norm(x)
            x = self._dropout(self._activation(x), layer, batch)
        if len(self.linears):
            x = self.linears[-1](x)
        return F.normalize(x, dim=-1)

    def _dropout(self, x: torch.Tensor, layer: int, batch: GlobalBatch | None) -> torch.Tensor:
        p = self.spec.dropout
        if not self.training or not p:
            return x
        if batch is None:
            return F.dropout(x, p)
        return x * _dropout_keep(x.shape[1], layer, batch, p, x.device) / (1 - p)


def _dropout_keep(width: int, layer: int, batch: GlobalBatch, p: float, device: torch.device) -> torch.Tensor:
    """(rows, width) bool, drawn from (seed, step, layer, block of rows) and thus the same on any number of workers."""
    start, end = batch.rows.start, batch.rows.start + batch.rows.count
    first = start // _DROPOUT_BLOCK
    generator = torch.Generator(device)
    blocks = []
    for block in range(first, -(-end // _DROPOUT_BLOCK)):
        name = f"dropout {batch.seed} {batch.step} {layer} {block}".encode()
        generator.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)
        blocks.append(torch.rand((_DROPOUT_BLOCK, width), generator=generator, device=device) >= p)
    if not blocks:
        return torch.empty((0, width), dtype=torch.bool, device=device)
    offset = start - first * _DROPOUT_BLOCK
    return torch.cat(blocks)[offset : offset + batch.rows.count]


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the statistics of the global batch (`torch.nn.SyncBatchNorm` refuses CPUs)."""

    def forward(self, x: torch.Tensor, batch: GlobalBatch | None = None) -> torch.Tensor:
        """(n, width) to (n, width)."""
        if not self.training or batch is None or world_size(batch.group) == 1:
            return super().forward(x)
        total = batch.rows.total
        mean = SumOverRanks.apply(x.sum(0), batch.group) / total
        centred = x - mean
        variance = SumOverRanks.apply(centred.square().sum(0), batch.group) / total
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = 0.0 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), momentum)
            self.num_batches_tracked += 1
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias
