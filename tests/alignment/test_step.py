"""A step is the plain loop that it stands for: accumulation, clipping, schedule, average, learned scale and bias."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharelock_ray.alignment.heads import Heads
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.alignment.step import Optimization, learning_rate
from sharelock_ray.batches.sampling import Batch

VISION, LANGUAGE, PAIRS = 10, 14, 24


def spec_of(**changes: object) -> AlignmentSpec:
    settings = {
        "language": {"depth": 3, "width": 16, "activation": "gelu"},
        "global_batch_size": PAIRS,
        "steps": 8,
        "warmup_steps": 3,
        "learning_rate": 0.01,
    }
    return AlignmentSpec.model_validate(settings | changes)


def batches(count: int, pairs: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(count, pairs, 6, generator=generator)
    sides = [torch.tanh(signal @ torch.randn(6, dim, generator=generator)) for dim in (VISION, LANGUAGE)]
    return [Batch(image, text) for image, text in zip(*sides, strict=True)]


def heads_of(spec: AlignmentSpec, seed: int = 0) -> Heads:
    torch.manual_seed(seed)
    return Heads(spec, VISION, LANGUAGE)


def test_equals_the_released_recipe_written_by_hand() -> None:
    # Micro-batches of 6: negatives and batch norm within each, mean of their losses, Adam with coupled decay of
    # everything, clipping, cosine after a warm-up, fixed temperature.
    spec = spec_of(accumulation=4, weight_decay=0.01, clip_norm=0.5)
    heads = heads_of(spec)
    layers: list[nn.Module] = []
    for linear, norm in zip(heads.language.linears, [*heads.language.norms, None], strict=True):
        layers += [copy.deepcopy(linear)]
        if norm is not None:
            plain = nn.BatchNorm1d(16)
            plain.load_state_dict(norm.state_dict())
            layers += [plain, nn.GELU()]
    network = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=0.01)
    optimization = Optimization(heads, spec)
    for step in range(8):
        parts = batches(4, 6, seed=step)
        found = optimization.step(parts, step)
        optimizer.zero_grad()
        losses = []
        for part in parts:
            logits = math.exp(2.6592) * F.normalize(part.image, dim=1) @ F.normalize(network(part.text), dim=1).T
            target = torch.arange(6)
            losses.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
            (losses[-1] / 4).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        warm, progress = (step + 1) / 3, (step - 3) / 5
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (warm if step < 3 else (1 + math.cos(math.pi * progress)) / 2)
        optimizer.step()
        torch.testing.assert_close(found["loss"], torch.stack(losses).mean().detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["grad_norm"], norm, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(heads.language.linears, network[::3], strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(heads.language.norms, network[1::3], strict=True):
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-3, atol=1e-5)
        assert int(ours.num_batches_tracked) == 32


def test_one_large_batch_has_more_negatives_than_accumulated_ones() -> None:
    whole = batches(1, PAIRS)[0]
    parts = [Batch(*pair) for pair in zip(whole.image.split(6), whole.text.split(6), strict=True)]
    one = Optimization(heads_of(spec_of()), spec_of()).step([whole], 0)["loss"]
    four = spec_of(accumulation=4)
    several = Optimization(heads_of(four), four).step(parts, 0)["loss"]
    assert float(one) > float(several) + 0.5


def test_too_few_micro_batches_are_refused() -> None:
    spec = spec_of(accumulation=4)
    with pytest.raises(ValueError, match=r"4 micro-batches \(`accumulation`\), not 1"):
        Optimization(heads_of(spec), spec).step(batches(1, 6), 0)


def test_the_average_follows_the_weights_by_its_rule() -> None:
    spec = spec_of(ema_decay=0.6)
    heads = heads_of(spec)
    optimization = Optimization(heads, spec)
    expected = {name: value.clone() for name, value in heads.state_dict().items()}
    for step in range(8):
        optimization.step(batches(1, PAIRS, seed=step), step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in heads.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
    for name, value in optimization.evaluated.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    held_out = batches(1, PAIRS, seed=9)
    alone = Optimization(optimization.evaluated, spec_of())
    assert optimization.validate(held_out) == alone.validate(held_out)
    assert optimization.validate(held_out) != Optimization(heads, spec_of()).validate(held_out)


def test_a_learned_scale_is_clamped_and_comes_back() -> None:
    spec = spec_of(learn_logit_scale=True, schedule="constant", warmup_steps=0)
    heads = heads_of(spec)
    optimization = Optimization(heads, spec)
    with torch.no_grad():
        # As after a step too far.
        heads.log_logit_scale.fill_(math.log(150))
    optimization.step(batches(1, PAIRS), 0)
    assert float(heads.logit_scale.detach()) == pytest.approx(100)
    # Heads that know nothing yet want a lower one.
    for step in range(1, 20):
        optimization.step(batches(1, PAIRS, seed=step), step)
    assert float(heads.logit_scale.detach()) < 95


def test_the_sigmoid_loss_learns_its_bias_and_tells_pairs_apart() -> None:
    spec = spec_of(loss="sigmoid", learn_logit_scale=True, logit_scale=10, logit_bias=-4.0, steps=200)
    heads = heads_of(spec)
    optimization = Optimization(heads, spec)
    before = optimization.validate(batches(1, PAIRS))
    for step in range(200):
        optimization.step(batches(1, PAIRS), step)
    after = optimization.validate(batches(1, PAIRS))
    assert after["validation_loss"] < before["validation_loss"] / 2
    assert after["recall_at_1"] > 0.9
    assert float(heads.logit_bias.detach()) != -4.0


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"optimizer": "lion"}, {"precision": "bfloat16"}], ids=str)
def test_every_kind_of_training_learns(changes: dict[str, object]) -> None:
    spec = spec_of(steps=150, **changes, learning_rate=0.003)
    optimization = Optimization(heads_of(spec), spec)
    losses = [float(optimization.step(batches(1, PAIRS), step)["loss"]) for step in range(150)]
    assert losses[-1] < losses[0] - 2
    assert optimization.heads.language.linears[0].weight.dtype == torch.float32


def test_both_sides_may_have_a_head() -> None:
    spec = spec_of(vision={"preset": "sail"}, language={"preset": "sail"}, dim=8, steps=60)
    optimization = Optimization(heads_of(spec), spec)
    losses = [float(optimization.step(batches(1, PAIRS), step)["loss"]) for step in range(60)]
    assert losses[-1] < losses[0] - 1
    assert all(p.grad is not None for p in optimization.heads.vision.parameters())


def test_dropout_differs_between_the_sides() -> None:
    # Equal heads of equal inputs would stay equal if they dropped the same units.
    head = {"depth": 2, "width": 64, "norm": "none", "dropout": 0.5}
    spec = spec_of(vision=head, language=head, dim=8)
    torch.manual_seed(0)
    heads = Heads(spec, VISION, VISION)
    heads.language.load_state_dict(heads.vision.state_dict())
    x = batches(1, PAIRS)[0].image
    image, text = Optimization(heads, spec)._projected(heads.train(), Batch(x, x), 0)
    assert not torch.allclose(image, text)


def test_recall_counts_every_text_of_an_images_own_kind() -> None:
    spec = spec_of(vision={"depth": 1}, language={"depth": 1}, dim=4)
    heads = Heads(spec, 4, 4).eval()
    for head in (heads.vision, heads.language):
        with torch.no_grad():
            head.linears[0].weight.copy_(torch.eye(4))
            head.linears[0].bias.zero_()
    image = torch.eye(4)
    text = torch.eye(4)[[1, 0, 2, 3]]
    ids = torch.tensor([5, 5, 6, 7])
    optimization = Optimization(heads, spec)
    assert optimization.validate([Batch(image, text)])["recall_at_1"] == 0.5
    assert optimization.validate([Batch(image, text, ids)])["recall_at_1"] == 1.0


class TestSchedule:
    def test_cosine_falls_to_zero_after_the_warm_up(self) -> None:
        rates = [learning_rate(spec_of(steps=30, warmup_steps=5, learning_rate=1e-3), step) for step in range(31)]
        assert rates[0] == pytest.approx(2e-4)
        assert rates[5] == pytest.approx(1e-3)
        assert rates[30] == pytest.approx(0, abs=1e-12)
        assert rates[5:] == sorted(rates[5:], reverse=True)

    def test_constant_stays(self) -> None:
        spec = spec_of(schedule="constant")
        assert [learning_rate(spec, step) for step in (0, 3, 7)] == pytest.approx([0.01 / 3, 0.01, 0.01])

    def test_wsd_is_stable_until_its_linear_decay(self) -> None:
        spec = spec_of(schedule="wsd", steps=20, warmup_steps=2, decay_steps=5)
        rates = [learning_rate(spec, step) / 0.01 for step in range(21)]
        assert rates[:3] == pytest.approx([0.5, 1, 1])
        assert rates[2:16] == pytest.approx([1] * 14)
        assert rates[15:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulation": 5}, "`global_batch_size` 24 cannot be split into 5 equal micro-batches"),
        ({"accumulation": 24}, "at least two pairs"),
        ({"schedule": "wsd"}, "set `decay_steps` if and only if"),
        ({"decay_steps": 3}, "set `decay_steps` if and only if"),
        ({"schedule": "wsd", "decay_steps": 7}, "exceed the 8 `steps`"),
        ({"language": ProjectionSpec()}, "both sides are locked"),
        ({"dim": 8}, "set `dim`, the width"),
        ({"logit_scale": 101}, "logit_scale"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**changes)
