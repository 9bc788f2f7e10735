"""The optimizers take the steps of torch's own, and of Lion's formula."""

import pytest
import torch

from sharelock_ray.alignment.optimizer import Adam, AdamW, Lion, Optimizer, optimizer_of
from sharelock_ray.alignment.spec import AlignmentSpec

KINDS = {"adam": Adam, "adamw": AdamW, "lion": Lion}


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for name in ("weight", "scale")}


def set_gradients(of: dict[str, torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in of.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("ours_is", "theirs_is"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_equals_torchs_own_with_weight_decay_where_it_applies(
    ours_is: type[Optimizer], theirs_is: type[torch.optim.Optimizer]
) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = ours_is(ours, weight_decay=0.1, undecayed=["scale"])
    groups = [{"params": [theirs["weight"]], "weight_decay": 0.1}, {"params": [theirs["scale"]], "weight_decay": 0}]
    reference = theirs_is(groups, lr=0.01)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step(0.01)
        reference.step()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_without_decay_both_ways_to_decay_are_one_to_the_last_bit() -> None:
    ends = [parameters(), parameters()]
    for kind, of in zip((Adam, AdamW), ends, strict=True):
        optimizer = kind(of)
        for step in range(5):
            set_gradients(of, step)
            optimizer.step(0.01)
    assert all(torch.equal(*values) for values in zip(*(of.values() for of in ends), strict=True))


def test_lion_follows_its_algorithm() -> None:
    found, decay = parameters(), {"weight": 0.1, "scale": 0.0}
    value = {name: p.detach().clone() for name, p in found.items()}
    mean = {name: torch.zeros(4, 3) for name in found}
    optimizer = Lion(found, weight_decay=0.1, undecayed=["scale"])
    for step in range(5):
        set_gradients(found, step)
        optimizer.step(0.01)
        for name, p in found.items():
            # Algorithm 2 of arXiv 2302.06675, line by line.
            update = torch.sign(0.9 * mean[name] + (1 - 0.9) * p.grad)
            value[name] = value[name] - 0.01 * (update + decay[name] * value[name])
            mean[name] = 0.99 * mean[name] + (1 - 0.99) * p.grad
            torch.testing.assert_close(p.detach(), value[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_names_its_optimizer_and_decay(kind: str) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = optimizer_of(AlignmentSpec(optimizer=kind, weight_decay=0.3), ours, ["scale"])
    reference = KINDS[kind](theirs, 0.3, ["scale"])
    for of, steps in ((ours, optimizer), (theirs, reference)):
        set_gradients(of, 0)
        steps.step(0.1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS.values())
def test_goes_on_from_its_state(kind: type[Optimizer]) -> None:
    whole, resumed = parameters(), parameters()
    first, second = kind(whole), kind(resumed)
    set_gradients(whole, 0)
    first.step(0.1)
    for name, value in whole.items():
        resumed[name].data.copy_(value)
    second.load_state(first.state())
    for of, optimizer in ((whole, first), (resumed, second)):
        set_gradients(of, 1)
        optimizer.step(0.1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("other", [{}, Lion(parameters()).state()], ids=["of nothing", "of another optimizer"])
def test_refuses_the_state_of_other_parameters(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="other parameters"):
        Adam(parameters()).load_state(other)
