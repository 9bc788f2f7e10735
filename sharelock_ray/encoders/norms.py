"""A model's last norm, for those who want what went into it."""

from typing import Any

import torch


class FinalNorm:
    """Watches the last norm of a model; `before` is what went into it in the latest forward pass.

    Args:
        in_trunk: whether that are the hidden states of all tokens, or one pooled vector an input.
    """

    before: torch.Tensor

    def __init__(self, norm: torch.nn.Module, in_trunk: bool = True) -> None:
        self.in_trunk = in_trunk
        norm.register_forward_pre_hook(self._keep)

    def _keep(self, norm: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.before = inputs[0]


def find_norm(model: torch.nn.Module, *names: str) -> torch.nn.Module | None:
    """The first of the modules `names` that `model` has and that changes its input."""
    for name in names:
        try:
            norm = model.get_submodule(name)
        except AttributeError:
            continue
        if not isinstance(norm, torch.nn.Identity):
            return norm
    return None
