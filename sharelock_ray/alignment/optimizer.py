"""Optimizers over named parameters, whose state is a dictionary of named tensors.

Adam uses torch's fused functional update. The classes of `torch.optim` and timm's Lion are not used: on first use they
import torch's compiler, which costs every training worker over a second and 80 MB (docs/benchmarks.md).
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch.optim.adam import adam

from sharelock_ray.alignment.spec import AlignmentSpec


class Optimizer:
    """Base class of the optimizers.

    Args:
        parameters: by name.
        weight_decay: coefficient for all parameters except `undecayed`.
        undecayed: names of parameters without weight decay.
    """

    _kinds: ClassVar[tuple[str, ...]]
    """State tensors per parameter: `step` is a scalar, all others have the shape of the parameter."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float = 0.0, undecayed: Iterable[str] = ()
    ) -> None:
        exempt = set(undecayed)
        self._parameters = dict(parameters)
        self._decay = {name: 0.0 if name in exempt else weight_decay for name in parameters}
        self._state = {
            kind: {
                name: torch.zeros((), device=p.device) if kind == "step" else torch.zeros_like(p)
                for name, p in parameters.items()
            }
            for kind in self._kinds
        }

    def step(self, learning_rate: float) -> None:
        """Updates all parameters from their gradients."""
        raise NotImplementedError

    def state(self) -> dict[str, torch.Tensor]:
        """The state for `load_state`, by name."""
        return {f"{kind}.{name}": value for kind, values in self._state.items() for name, value in values.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies the result of `state` into this optimizer.

        Raises:
            RuntimeError: the state belongs to other parameters or another optimizer.
        """
        if state.keys() != self.state().keys():
            raise RuntimeError("the optimizer's state belongs to other parameters")
        for key, own in self.state().items():
            own.copy_(state[key])


class Adam(Optimizer):
    """Adam (arXiv 1412.6980) with coupled (L2) weight decay."""

    _kinds = ("mean", "square", "step")
    _decoupled = False

    def step(self, learning_rate: float) -> None:
        for decay in set(self._decay.values()):
            names = [name for name in self._parameters if self._decay[name] == decay]
            adam(
                [self._parameters[name] for name in names],
                [_gradient(self._parameters[name]) for name in names],
                [self._state["mean"][name] for name in names],
                [self._state["square"][name] for name in names],
                [],
                [self._state["step"][name] for name in names],
                fused=True,
                decoupled_weight_decay=self._decoupled,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=learning_rate,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
            )


class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    _decoupled = True


class Lion(Optimizer):
    """Lion (arXiv 2302.06675, algorithm 2) with its betas, 0.9 and 0.99, and decoupled weight decay."""

    _kinds = ("mean",)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for name, parameter in self._parameters.items():
            gradient, mean = _gradient(parameter), self._state["mean"][name]
            parameter.mul_(1 - learning_rate * self._decay[name])
            parameter.sub_(mean.lerp(gradient, 0.1).sign_(), alpha=learning_rate)
            mean.lerp_(gradient, 0.01)


def optimizer_of(
    spec: AlignmentSpec, parameters: Mapping[str, torch.nn.Parameter], undecayed: Iterable[str] = ()
) -> Optimizer:
    """The optimizer selected by `spec`."""
    kind = {"adam": Adam, "adamw": AdamW, "lion": Lion}[spec.optimizer]
    return kind(parameters, spec.weight_decay, undecayed)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
