"""Optimizers over named parameters, with a state of named tensors.

Adam's update is torch's own functional, fused one. Not `torch.optim.Adam`: building one imports torch's compiler, which
costs every training worker 80 MB and a second (measured with torch 2.15).
"""

from collections.abc import Iterable, Mapping
from itertools import groupby

import torch
from torch.optim.adam import adam

from sharelock_ray.alignment.spec import AlignmentSpec

_EPSILON = 1e-8


class Optimizer:
    """What every optimizer is: parameters with a decay each, and kinds of state, a tensor for each parameter.

    Args:
        parameters: by name.
        weight_decay: coefficient of the parameters that are not in `undecayed`.
        undecayed: names.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float = 0.0, undecayed: Iterable[str] = ()
    ) -> None:
        self._parameters = dict(parameters)
        exempt = set(undecayed)
        self._decay = {name: 0.0 if name in exempt else weight_decay for name in parameters}
        self._kinds: dict[str, dict[str, torch.Tensor]] = {}

    def step(self, learning_rate: float) -> None:
        """Updates every parameter by its gradient."""
        raise NotImplementedError

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a later `load_state` needs, by name."""
        return {f"{kind}.{name}": value for kind, values in self._kinds.items() for name, value in values.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `state` gave.

        Raises:
            RuntimeError: it is of other parameters, or of another optimizer.
        """
        if state.keys() != self.state().keys():
            raise RuntimeError("the optimizer's state is of other parameters")
        for key, own in self.state().items():
            own.copy_(state[key])

    def _like_parameters(self) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(p) for name, p in self._parameters.items()}


class Adam(Optimizer):
    """Adam (arXiv 1412.6980) with coupled weight decay, an L2 term of the gradient."""

    _decoupled = False

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float = 0.0, undecayed: Iterable[str] = ()
    ) -> None:
        super().__init__(parameters, weight_decay, undecayed)
        steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}
        self._kinds = {"mean": self._like_parameters(), "square": self._like_parameters(), "step": steps}

    def step(self, learning_rate: float) -> None:
        for decay, group in groupby(sorted(self._parameters, key=self._decay.__getitem__), self._decay.__getitem__):
            names = list(group)
            adam(
                [self._parameters[name] for name in names],
                [_gradient(self._parameters[name]) for name in names],
                [self._kinds["mean"][name] for name in names],
                [self._kinds["square"][name] for name in names],
                [],
                [self._kinds["step"][name] for name in names],
                fused=True,
                decoupled_weight_decay=self._decoupled,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=learning_rate,
                weight_decay=decay,
                eps=_EPSILON,
                maximize=False,
            )


class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    _decoupled = True


class Lion(Optimizer):
    """Lion (arXiv 2302.06675, algorithm 2) with its betas, 0.9 and 0.99, and decoupled weight decay."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], weight_decay: float = 0.0, undecayed: Iterable[str] = ()
    ) -> None:
        super().__init__(parameters, weight_decay, undecayed)
        self._kinds = {"mean": self._like_parameters()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for name, parameter in self._parameters.items():
            gradient, mean = _gradient(parameter), self._kinds["mean"][name]
            parameter.mul_(1 - learning_rate * self._decay[name])
            parameter.sub_(mean.lerp(gradient, 0.1).sign_(), alpha=learning_rate)
            mean.lerp_(gradient, 0.01)


def optimizer_of(
    spec: AlignmentSpec, parameters: Mapping[str, torch.nn.Parameter], undecayed: Iterable[str] = ()
) -> Optimizer:
    """The optimizer that a spec asks for."""
    kind = {"adam": Adam, "adamw": AdamW, "lion": Lion}[spec.optimizer]
    return kind(parameters, spec.weight_decay, undecayed)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
