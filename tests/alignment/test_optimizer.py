"""The optimizers take the steps of torch's own and of timm's Lion."""

from collections.abc import Callable
from functools import partial

import pytest
import timm.optim
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


REFERENCES = [
    (Adam, partial(torch.optim.Adam, fused=True)),
    (AdamW, partial(torch.optim.AdamW, fused=True)),
    (Lion, timm.optim.Lion),
]


@pytest.mark.parametrize(("ours_is", "theirs_is"), REFERENCES, ids=KINDS)
def test_equals_the_librarys_bit_for_bit_with_weight_decay_where_it_applies(
    ours_is: type[Optimizer], theirs_is: Callable[..., torch.optim.Optimizer]
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
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_without_decay_both_ways_to_decay_are_one_to_the_last_bit() -> None:
    ends = [parameters(), parameters()]
    for kind, of in zip((Adam, AdamW), ends, strict=True):
        optimizer = kind(of)
        for step in range(5):
            set_gradients(of, step)
            optimizer.step(0.01)
    assert all(torch.equal(*values) for values in zip(*(of.values() for of in ends), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_names_its_optimizer_and_decay(kind: str) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = optimizer_of(AlignmentSpec(optimizer=kind, weight_decay=0.3), ours, ["scale"])
    reference = KINDS[kind](theirs, 0.3, ["scale"])
    for of, steps in ((ours, optimizer), (theirs, reference)):
        set_gradients(of, 0)
        steps.step(0.1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_names_its_state_as_stored_checkpoints_do(kind: str) -> None:
    of = {"lion": ["mean"]}.get(kind, ["mean", "square", "step"])
    assert KINDS[kind](parameters()).state().keys() == {f"{each}.{name}" for each in of for name in ("weight", "scale")}


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
