"""The optimizer takes torch.optim.Adam's steps."""

import pytest
import torch

from sharelock_ray.alignment.optimizer import Adam


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for name in ("weight", "scale")}


def set_gradients(of: dict[str, torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in of.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equals_torchs_own_with_weight_decay_where_it_applies() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = Adam(ours, weight_decay=0.1, undecayed=["scale"])
    groups = [{"params": [theirs["weight"]], "weight_decay": 0.1}, {"params": [theirs["scale"]]}]
    reference = torch.optim.Adam(groups, lr=0.01)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step(0.01)
        reference.step()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_goes_on_from_its_state() -> None:
    whole, resumed = parameters(), parameters()
    first, second = Adam(whole), Adam(resumed)
    set_gradients(whole, 0)
    first.step(0.1)
    for name, value in whole.items():
        resumed[name].data.copy_(value)
    second.load_state(first.state())
    for of, optimizer in ((whole, first), (resumed, second)):
        set_gradients(of, 1)
        optimizer.step(0.1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_refuses_the_state_of_other_parameters() -> None:
    with pytest.raises(RuntimeError, match="other parameters"):
        Adam(parameters()).load_state({})
