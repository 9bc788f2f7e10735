"""An affine map from a layer's states to those of the last layer, by which its head can read them."""

import torch

_RIDGE = 0.03
"""Penalty of the map, as a part of the variance of each state: a text may have few more tokens than a state numbers."""


class AffineMap:
    """Ridge regression of targets on states, from sums over batches (arXiv 2303.09435).

    A layer's states have other directions than those of the last, so that its head alone cannot read what they hold.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._width = 0

    def add(self, states: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds (N, D) states and their (N, E) targets."""
        both = torch.cat([states, states.new_ones(len(states), 1), targets], 1).double()
        sums = both.T @ both
        self._sums = sums if self._sums is None else self._sums + sums
        self._width = states.shape[1]

    def fit(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the (D, E) matrix and the (E,) offset of the map, in float32."""
        assert self._sums is not None, "no states"
        d, count = self._width, self._sums[self._width, self._width]
        means = self._sums[d] / count
        covariance = self._sums / count - torch.outer(means, means)
        variances = covariance.diagonal()[:d]
        # A state without variance, but for rounding, tells nothing.
        scales = torch.where(variances > 1e-12 * means[:d] ** 2, variances.rsqrt(), 0.0)
        correlations = scales[:, None] * covariance[:d, :d] * scales
        penalty = _RIDGE * torch.eye(d, dtype=correlations.dtype, device=correlations.device)
        matrix = scales[:, None] * torch.linalg.solve(correlations + penalty, scales[:, None] * covariance[:d, d + 1 :])
        return matrix.float(), (means[d + 1 :] - means[:d] @ matrix).float()
