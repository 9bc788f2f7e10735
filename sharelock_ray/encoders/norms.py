"""Access to what the modules of a model are given and return within a forward pass."""

from collections.abc import Sequence
from typing import Any

import torch


class FinalNorm:
    """Records the input of a model's final norm; `before` holds that of the latest forward pass."""

    before: torch.Tensor

    def __init__(self, norm: torch.nn.Module) -> None:
        norm.register_forward_pre_hook(self._keep)

    def _keep(self, norm: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.before = inputs[0]


class HiddenStates:
    """Records the hidden states between the layers of a model; `states` holds those of the latest forward pass.

    Args:
        layers: all layers in their order.
        layer: 0 is the input of the first layer, n or -1 the output of the last.
    """

    states: torch.Tensor

    def __init__(self, layers: Sequence[torch.nn.Module], layer: int) -> None:
        after = layer % (len(layers) + 1)
        if after == 0:
            layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        else:
            layers[after - 1].register_forward_hook(self._keep_output)

    def _keep_input(self, layer: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.states = inputs[0] if inputs else named["hidden_states"]

    def _keep_output(self, layer: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.states = output[0] if isinstance(output, tuple) else output


def find_norm(model: torch.nn.Module, *names: str) -> torch.nn.Module | None:
    """Returns the first of the modules `names` that exists in `model` and is not an identity."""
    for name in names:
        try:
            norm = model.get_submodule(name)
        except AttributeError:
            continue
        if not isinstance(norm, torch.nn.Identity):
            return norm
    return None
