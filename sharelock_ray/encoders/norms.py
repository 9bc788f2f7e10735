"""Access to the input of a model's final norm."""

from typing import Any

import torch


class FinalNorm:
    """Records the input of a model's final norm; `before` holds that of the latest forward pass.

    Args:
        norm: the final norm.
        in_trunk: True if its input is the hidden states of all tokens, False if it is one pooled vector per image.
    """

    before: torch.Tensor

    def __init__(self, norm: torch.nn.Module, in_trunk: bool = True) -> None:
        self.in_trunk = in_trunk
        norm.register_forward_pre_hook(self._keep)

    def _keep(self, norm: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.before = inputs[0]


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
