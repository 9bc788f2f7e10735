"""Linear layers of frozen encoders by oneDNN, where torch's own use half of the processor."""

import torch
from torch import nn

from sharelock_ray import onednn


class OneDnnLinear(nn.Linear):
    """A frozen float32 layer on a CPU, computed by oneDNN; its outputs equal `nn.Linear`'s up to rounding."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features)
        if not len(rows):
            return super().forward(input)
        # The weights are converted at each call. A converted copy would save a few percent of the time, but processes
        # could no longer share the pages of the weights' file.
        return onednn.linear(rows, self.weight, self.bias).view(*input.shape[:-1], self.out_features)


def accelerate(model: nn.Module) -> None:
    """Makes the float32 linear layers of a frozen model on a CPU `OneDnnLinear`s, on processors where it helps."""
    if onednn.is_faster():
        for module in model.modules():
            # Subclasses may compute something else.
            if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.is_cpu:
                # In place, since the model may refer to the layer by several names.
                module.__class__ = OneDnnLinear
