"""Products of float32 matrices on a CPU by oneDNN, where torch's own use half of the processor.

torch multiplies float32 matrices by MKL, which does not use the whole width of AVX-512 on AMD's processors:
112 GFLOP/s on a core on which oneDNN reaches 250 (docs/benchmarks.md). Results are equal up to rounding.
"""

import torch

from sharelock_ray.machine import is_amd


def is_faster() -> bool:
    """Whether this processor multiplies float32 matrices faster by oneDNN than by torch's default."""
    return is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(N, M) `rows @ weight.T + bias` by oneDNN, of (N, D), at least one row, and (M, D), both float32 on a CPU."""
    of_bias = None if bias is None else bias.to_mkldnn()
    return torch.nn.functional.linear(rows.to_mkldnn(), weight.to_mkldnn(), of_bias).to_dense()


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(N, M) `left @ right.T` of (N, D) and (M, D), without gradients; by oneDNN where that is faster."""
    one_dnn = left.is_cpu and left.dtype == right.dtype == torch.float32 and len(left) and len(right) and is_faster()
    return linear(left, right) if one_dnn else left @ right.T
