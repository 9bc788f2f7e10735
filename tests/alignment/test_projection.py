"""The projection is the plain network it describes, and its dropout does not depend on who holds which rows."""

import copy
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharelock_ray.alignment.distributed import Rows
from sharelock_ray.alignment.projection import GlobalBatch, GlobalBatchNorm, Projection, dropout_scales
from sharelock_ray.alignment.spec import ProjectionSpec

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


def inputs(rows: int = 20, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_hand(projection: Projection) -> nn.Sequential:
    """A plain network with the projection's weights: linear, norm, activation; …; linear."""
    spec = projection.spec
    layers: list[nn.Module] = []
    for i, linear in enumerate(projection.linears):
        copy = nn.Linear(linear.in_features, linear.out_features)
        copy.load_state_dict(linear.state_dict())
        layers.append(copy)
        if i < spec.depth - 1:
            norm = NORMS[spec.norm](spec.width)
            norm.load_state_dict(projection.norms[i].state_dict())
            layers += [norm, ACTIVATIONS[spec.activation]()]
    return nn.Sequential(*layers)


def in_batch(
    start: int, count: int, total: int = 700, seed: int = 0, step: int = 0, side: str = "vision"
) -> GlobalBatch:
    return GlobalBatch(Rows(start, count, total, (start, count, total - start - count)), seed, step, side=side)


class TestStructure:
    @pytest.mark.parametrize("depth", [1, 2, 4])
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_equals_a_network_written_by_hand(self, depth: int, norm: str, activation: str) -> None:
        projection = Projection(12, 7, depth=depth, width=9, norm=norm, activation=activation, dropout=0.3).eval()
        x = inputs()
        expected = by_hand(projection).eval()(x)
        torch.testing.assert_close(projection(x), expected / expected.norm(dim=1, keepdim=True))

    def test_has_the_widths_and_parameters_of_the_paper(self) -> None:
        projection = Projection(384, 1024)
        shapes = [(linear.in_features, linear.out_features) for linear in projection.linears]
        assert shapes == [(384, 4096), (4096, 4096), (4096, 4096), (4096, 1024)]
        linear = 384 * 4096 + 4096 + 2 * (4096 * 4096 + 4096) + 4096 * 1024 + 1024
        assert sum(p.numel() for p in projection.parameters()) == linear + 3 * 2 * 4096

    @pytest.mark.parametrize("training", [True, False])
    def test_of_depth_zero_only_normalises(self, training: bool) -> None:
        projection = Projection(12, 12, depth=0, dropout=0.5).train(training)
        x = inputs()
        torch.testing.assert_close(projection(x), x / x.norm(dim=1, keepdim=True))
        assert list(projection.parameters()) == []

    def test_gives_unit_vectors(self) -> None:
        for depth in (0, 1, 3):
            norms = Projection(12, 12, depth=depth, width=8)(100 * inputs()).norm(dim=1)
            torch.testing.assert_close(norms, torch.ones(20))

    def test_without_dropout_trains_as_the_network_written_by_hand(self) -> None:
        projection = Projection(12, 7, depth=3, width=9, norm="batch", dropout=0.0).train()
        plain, x, target = by_hand(projection).train(), inputs(), inputs(20, 7, seed=1)
        (projection(x) * target).sum().backward()
        (F.normalize(plain(x), dim=1) * target).sum().backward()
        for ours, theirs in ((projection.linears, plain[::3]), (projection.norms, plain[1::3])):
            for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        "setting",
        [
            {"depth": -1},
            {"depth": 17},
            {"width": 0},
            {"activation": "sigmoid"},
            {"norm": "group"},
            {"dropout": 1.0},
            {"dropout": -0.1},
        ],
        ids=str,
    )
    def test_other_settings_are_refused(self, setting: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=next(iter(setting))):
            Projection(12, 7, **setting)

    def test_depth_zero_between_different_widths_is_refused(self) -> None:
        with pytest.raises(ValueError, match="width 12 does not fit a shared space of width 7"):
            Projection(12, 7, depth=0)


class TestVariants:
    def test_residual_layers_of_equal_width_add_their_input(self) -> None:
        projection = Projection(12, 7, depth=4, width=9, residual=True, norm="layer", activation="gelu", dropout=0.0)
        x = inputs()
        hidden = F.gelu(projection.norms[0](projection.linears[0](x)))
        for layer in (1, 2):
            hidden = hidden + F.gelu(projection.norms[layer](projection.linears[layer](hidden)))
        expected = F.normalize(projection.linears[3](hidden), dim=1)
        torch.testing.assert_close(projection(x), expected)

    def test_gated_layers_multiply_two_linear_maps(self) -> None:
        projection = Projection(12, 7, depth=3, width=9, gated=True, norm="none", activation="silu", dropout=0.0)
        hidden = x = inputs()
        for layer in (0, 1):
            hidden = F.silu(projection.linears[layer](hidden)) * projection.gates[layer](hidden)
        torch.testing.assert_close(projection(x), F.normalize(projection.linears[2](hidden), dim=1))

    def test_sail_is_a_norm_and_a_gated_unit_of_eight_widths(self) -> None:
        projection = Projection(12, 7, preset="sail")
        norm, wide, gate, out = nn.LayerNorm(12), nn.Linear(12, 96), nn.Linear(12, 96), nn.Linear(96, 7)
        for ours, theirs in ((projection.linears[0], wide), (projection.gates[0], gate), (projection.linears[1], out)):
            theirs.load_state_dict(ours.state_dict())
        x = norm(5 * inputs())
        torch.testing.assert_close(projection(5 * inputs()), F.normalize(out(F.relu6(wide(x)) * gate(x)), dim=1))
        assert sum(p.numel() for p in projection.parameters()) == 2 * 12 + 2 * (12 * 96 + 96) + 96 * 7 + 7

    def test_xavier_weights_have_the_range_of_the_formula_and_no_bias(self) -> None:
        # Glorot and Bengio (2010), equation 16.
        projection = Projection(300, 200, depth=2, width=500, init="xavier", gated=True)
        for linear in (*projection.linears, *projection.gates):
            limit = (6 / (linear.in_features + linear.out_features)) ** 0.5
            assert 0.98 * limit < float(linear.weight.detach().abs().max()) <= limit
            assert float(linear.bias.detach().abs().max()) == 0

    @pytest.mark.parametrize(
        "settings",
        [{"preset": "sail"}, {"norm": "batch"}, {"norm": "layer", "activation": "gelu", "residual": True}],
        ids=str,
    )
    def test_under_bfloat16_is_near_float32_and_trains(self, settings: dict[str, Any]) -> None:
        small = {} if "preset" in settings else {"depth": 3, "width": 32}
        projection = Projection(12, 7, **small, **settings, dropout=0.0).train()
        target = inputs(20, 7, seed=1)
        gradients = []
        for enabled in (False, True):
            projection.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found = projection(inputs(), in_batch(0, 20, 20))
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.detach().norm(dim=1), torch.ones(20))
            (found * target).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in projection.parameters()]))
        assert float(F.cosine_similarity(*gradients, dim=0)) > 0.99

    def test_compiled_is_the_same_network(self) -> None:
        projection = Projection(12, 7, depth=3, width=9, dropout=0.3).train()
        compiled = copy.deepcopy(projection)
        # What the compiler captures is run as it is: to generate code as well takes half a minute.
        compiled.compile(backend="eager", fullgraph=True)
        assert compiled.state_dict().keys() == projection.state_dict().keys()
        for step in range(12):
            batch = in_batch(0, 20, 20, step=step)
            torch.testing.assert_close(compiled(inputs(), batch), projection(inputs(), batch))
        torch.testing.assert_close(compiled.eval()(inputs()), projection.eval()(inputs()))

    def test_is_compiled_for_training_alone(self) -> None:
        projection = Projection(12, 7, depth=2, width=9)
        runs: list[int] = []

        def counting(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
            runs.append(len(runs))
            return graph.forward

        projection.compile(backend=counting)
        projection.eval()(inputs())
        assert not runs
        projection.train()(inputs())
        assert runs == [0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"preset": "sail", "depth": 4}, "the preset sail has depth 2: leave out `depth` or `preset`"),
            ({"preset": "cail"}, "preset"),
        ],
    )
    def test_what_a_preset_is_not_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ProjectionSpec.model_validate(settings)

    def test_a_preset_reads_back_the_same(self) -> None:
        spec = ProjectionSpec(preset="sail", dropout=0.1)
        assert ProjectionSpec.model_validate(spec.model_dump(mode="json")) == spec
        assert (spec.width_factor, spec.gated, spec.dropout) == (8, True, 0.1)


class TestEffective:
    """Settings that change nothing of a head, against the heads that they make."""

    FIELDS: ClassVar = {
        "depth": [0, 1, 2, 3],
        "width": [6, 12],
        "width_factor": [None, 1],
        "activation": ["relu", "tanh"],
        "norm": ["batch", "none"],
        "dropout": [0.0, 0.5],
        "input_norm": [False, True],
        "gated": [False, True],
        "residual": [False, True],
        "init": ["torch", "xavier"],
    }

    @staticmethod
    def trained(spec: ProjectionSpec) -> str:
        """What a head gives in training and in evaluation, of inputs 12 wide, to the last bit."""
        torch.manual_seed(0)
        projection = Projection(12, 12, **spec.model_dump())
        given = projection(inputs(), in_batch(0, 20, 20)), projection.eval()(inputs())
        return str([value.tolist() for value in given])

    def test_is_equal_exactly_where_the_heads_are(self) -> None:
        specs = [
            ProjectionSpec(**dict(zip(self.FIELDS, v, strict=True))) for v in itertools.product(*self.FIELDS.values())
        ]
        chosen = random.Random(0).sample(specs, 500)
        heads, forms = defaultdict(set), defaultdict(set)
        for spec in chosen:
            head, form = self.trained(spec), spec.effective(12).model_dump_json()
            heads[form].add(head)
            forms[head].add(form)
        assert {len(of) for of in heads.values()} == {1}
        assert {len(of) for of in forms.values()} == {1}
        assert 100 < len(forms) < 300

    def test_of_a_preset_is_that_of_its_fields(self) -> None:
        sail = ProjectionSpec(preset="sail")
        by_hand = ProjectionSpec(**sail.model_dump(exclude={"preset", "width_factor"}) | {"width": 96})
        assert sail.effective(12) == by_hand.effective(12)
        assert sail.effective(13) != by_hand.effective(13)


class TestBatchNorm:
    @pytest.mark.parametrize("batch", [None, in_batch(0, 20, 20)], ids=["alone", "as a global batch"])
    def test_equals_torch_in_training_and_evaluation(self, batch: GlobalBatch | None) -> None:
        ours, theirs = GlobalBatchNorm(12), nn.BatchNorm1d(12)
        for step in range(3):
            x = 3 * inputs(seed=step) + 1
            torch.testing.assert_close(ours(x, batch), theirs(x))
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
        torch.testing.assert_close(ours.eval()(inputs(seed=9), batch), theirs.eval()(inputs(seed=9)))


class TestDropout:
    @pytest.fixture
    def projection(self) -> Projection:
        torch.manual_seed(0)
        return Projection(12, 7, depth=3, width=64, norm="none", dropout=0.5).train()

    @pytest.mark.parametrize("cuts", [(256,), (1,), (100, 300, 511), (255, 257, 512, 699)], ids=str)
    def test_of_slices_is_that_of_the_whole(self, projection: Projection, cuts: tuple[int, ...]) -> None:
        x = inputs(700)
        whole = projection(x, in_batch(0, 700))
        slices = [projection(x[a:b], in_batch(a, b - a)) for a, b in pairwise((0, *cuts, 700))]
        torch.testing.assert_close(torch.cat(slices), whole)

    def test_does_not_disturb_and_is_not_disturbed_by_other_random_numbers(self, projection: Projection) -> None:
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        first = projection(inputs(), in_batch(0, 20))
        assert torch.equal(torch.rand(3), expected)
        assert torch.equal(projection(inputs(), in_batch(0, 20)), first)

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"step": 1}, {"side": "language"}, {"start": 20}, {"start": 256}], ids=str
    )
    def test_changes_with_seed_step_side_and_row(self, projection: Projection, change: dict[str, Any]) -> None:
        settings: dict[str, Any] = {"start": 0, "count": 20}
        one, other = (projection(inputs(), in_batch(**s)) for s in (settings, settings | change))
        assert not torch.allclose(one, other)

    def test_changes_with_the_layer(self) -> None:
        one, other = (dropout_scales(8, layer, in_batch(0, 20), 0.5, torch.device("cpu")) for layer in (0, 1))
        assert not torch.equal(one, other)

    def test_keeps_the_mean_and_drops_the_share(self) -> None:
        projection = Projection(8, 64, depth=2, width=64, dropout=0.2, norm="none").train()
        with torch.no_grad():
            # Hidden units of one, and an output that shows them before it is normalised.
            projection.linears[0].weight.zero_()
            projection.linears[0].bias.fill_(1)
            projection.linears[1].weight.copy_(torch.eye(64))
            projection.linears[1].bias.zero_()
        for batch in (in_batch(0, 700), None):
            shown: list[torch.Tensor] = []
            projection.linears[1].register_forward_hook(lambda *args, to=shown: to.append(args[2]))
            projection(inputs(700, 8), batch)
            assert set(shown[0].unique().tolist()) == {0.0, 1.25}
            assert float((shown[0] == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
            assert float(shown[0].detach().mean()) == pytest.approx(1, abs=0.02)

    def test_is_off_in_evaluation(self, projection: Projection) -> None:
        projection.eval()
        assert torch.equal(projection(inputs(), in_batch(0, 20)), projection(inputs()))

    def test_of_no_rows_is_none(self, projection: Projection) -> None:
        assert projection(inputs(0), in_batch(512, 0)).shape == (0, 7)
