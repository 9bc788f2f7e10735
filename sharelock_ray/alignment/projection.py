"""The trained projection: an MLP whose result does not depend on the number of workers."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sharelock_ray.alignment.distributed import Group, Rows, SumOverRanks, world_size
from sharelock_ray.alignment.spec import ProjectionSpec


def _relu6(x: torch.Tensor) -> torch.Tensor:
    # F.relu6 lacks a bfloat16 backward pass in some versions of torch.
    return x.clamp(0, 6)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "relu6": _relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Rows of the global batch per draw of dropout masks, independent of ranks. A CPU block fits the caches; a larger GPU
# block needs fewer kernel launches.
_DROPOUT_BLOCK = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True)
class GlobalBatch:
    """The global batch of a forward pass in training.

    `rows` is this rank's share; `seed`, `step` and `side` determine the dropout masks.
    """

    rows: Rows
    seed: int
    step: int
    group: Group = None
    side: str = ""


class Projection(nn.Module):
    """`depth` linear layers; norm, activation and dropout follow all but the last. Depth 0 is the identity.

    Args:
        in_dim: width of the frozen embedding.
        out_dim: width of the shared space; for depth 0 it must equal `in_dim`.
        settings: fields of `ProjectionSpec`. Without a preset, depth, width and dropout default to the paper's values.

    Raises:
        ValueError: depth 0 with different widths, or an invalid field of `ProjectionSpec`.
    """

    def __init__(self, in_dim: int, out_dim: int, **settings: Any) -> None:
        super().__init__()
        paper = {} if settings.get("preset") else {"depth": 4, "width": 4096, "dropout": 0.2}
        self.spec = spec = ProjectionSpec.model_validate(paper | settings)
        if spec.depth == 0 and in_dim != out_dim:
            raise ValueError(f"a locked side of width {in_dim} does not fit a shared space of width {out_dim}")
        width = spec.width_factor * in_dim if spec.width_factor else spec.width
        widths = [in_dim, *[width] * (spec.depth - 1), out_dim] if spec.depth else []
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        kind = {"batch": GlobalBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}[spec.norm]
        self.norms = nn.ModuleList(kind(width) for _ in widths[1:-1])
        self.input_norm = nn.LayerNorm(in_dim) if spec.input_norm and spec.depth else nn.Identity()
        self.gates = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths[:-1]) if spec.gated)
        self._activation = _ACTIVATIONS[spec.activation]
        self._compiled: Callable[..., torch.Tensor] | None = None
        if spec.init == "xavier":
            for linear in (*self.linears, *self.gates):
                assert isinstance(linear, nn.Linear)
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor, batch: GlobalBatch | None = None) -> torch.Tensor:
        """Projects (n, in_dim) to unit vectors (n, out_dim), in float32 even under autocast.

        Args:
            batch: the global batch of these rows; needed for training on several workers and for reproducible dropout.
        """
        if not self.spec.depth:
            return F.normalize(x, dim=-1)
        # Drawn outside the compiled network, which would otherwise be recompiled for each step.
        dropout = [self._dropout(x, layer, batch) for layer in range(len(self.norms))]
        network = self._compiled if self.training and self._compiled is not None else self._network
        projected = network(x, dropout, batch)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the network for training; arguments are passed to `torch.compile`.

        Evaluation stays uncompiled: its few passes do not pay for another compilation.
        """
        self._compiled = torch.compile(self._network, *args, **kwargs)

    def _network(
        self, x: torch.Tensor, dropout: Sequence[torch.Tensor | None], batch: GlobalBatch | None
    ) -> torch.Tensor:
        x = self.input_norm(x)
        for layer, norm in enumerate(self.norms):
            hidden = self.linears[layer](x)
            hidden = self._activation(norm(hidden, batch) if isinstance(norm, GlobalBatchNorm) else norm(hidden))
            if self.spec.gated:
                hidden = hidden * self.gates[layer](x)
            scales = dropout[layer]
            if scales is not None:
                hidden = _Scaled.apply(hidden, scales)
            x = x + hidden if self.spec.residual and x.shape == hidden.shape else hidden
        return self.linears[-1](x)

    def _dropout(self, x: torch.Tensor, layer: int, batch: GlobalBatch | None) -> torch.Tensor | None:
        """(n, width) float32 factors for a layer's hidden units; None without dropout."""
        p, linear = self.spec.dropout, self.linears[layer]
        assert isinstance(linear, nn.Linear)
        if not self.training or not p:
            return None
        if batch is None:
            return _scales(torch.rand((len(x), linear.out_features), device=x.device), p)
        return dropout_scales(linear.out_features, layer, batch, p, x.device)


def dropout_scales(width: int, layer: int, batch: GlobalBatch, p: float, device: torch.device) -> torch.Tensor:
    """(rows, width) float32 dropout factors: 0 for dropped units, 1 / (1 - p) for kept ones.

    Determined by (seed, step, side, layer, block of rows), so they are the same on any number of workers.
    """
    start, end = batch.rows.start, batch.rows.start + batch.rows.count
    height = _DROPOUT_BLOCK[device.type]
    scales = torch.empty((batch.rows.count, width), device=device)
    generator = torch.Generator(device)
    for block in range(start // height, -(-end // height)):
        name = f"dropout {batch.seed} {batch.step} {batch.side} {layer} {block}".encode()
        generator.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)
        first = block * height
        mine = slice(max(start - first, 0), min(end - first, height))
        here = scales[first + mine.start - start : first + mine.stop - start]
        if len(here) == height:
            torch.rand((height, width), generator=generator, out=here)
        else:
            here.copy_(torch.rand((height, width), generator=generator, device=device)[mine])
        _scales(here, p)
    return scales


def _scales(drawn: torch.Tensor, p: float) -> torch.Tensor:
    """Turns uniform draws from [0, 1) into dropout factors, in place."""
    return drawn.ge_(p).mul_(1 / (1 - p))


class _Scaled(torch.autograd.Function):
    """x * scales in the type of x: one pass in place of three if `scales` is wider, also in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scales)
        return torch.mul(x, scales, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scales,) = ctx.saved_tensors
        return torch.mul(gradient, scales, out=torch.empty_like(gradient)), None


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the statistics of the global batch (`torch.nn.SyncBatchNorm` does not support CPUs)."""

    def forward(self, x: torch.Tensor, batch: GlobalBatch | None = None) -> torch.Tensor:
        """Normalises (n, width) rows in their own type; statistics are float32 or wider."""
        if not self.training or batch is None or world_size(batch.group) == 1:
            return super().forward(x)
        total = batch.rows.total
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = SumOverRanks.apply(wide.sum(0), batch.group) / total
        centred = wide - mean
        variance = SumOverRanks.apply(centred.square().sum(0), batch.group) / total
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = 0.0 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), momentum)
            self.num_batches_tracked += 1
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(x.dtype)
