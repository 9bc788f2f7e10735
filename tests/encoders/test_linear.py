"""Linear layers of frozen encoders on a CPU: the same numbers, faster where the processor has a faster way."""

import pytest
import torch
from torch import nn

from sharelock_ray import onednn
from sharelock_ray.encoders.linear import OneDnnLinear, accelerate


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: True)


class Reader(nn.Module):
    """Reads the weights of its layer itself, as timm's BEiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.alias = self.qkv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qkv.weight) + self.alias(x)


@pytest.mark.usefixtures("faster")
class TestAccelerate:
    @pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 4, 5, 2, 8), (0, 8), (8,)])
    @pytest.mark.parametrize("bias", [True, False])
    def test_outputs_are_those_of_torch(self, shape: tuple[int, ...], bias: bool) -> None:
        model = nn.Sequential(nn.Linear(8, 16, bias=bias)).requires_grad_(False)
        x = torch.randn(shape)
        expected = model(x)
        accelerate(model)
        assert type(model[0]) is OneDnnLinear
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)

    def test_of_a_strided_input_too(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16)).requires_grad_(False)
        x = torch.randn(8, 5, 3).transpose(0, 2)
        expected = model(x)
        accelerate(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)

    def test_weights_stay_where_they_are(self) -> None:
        """Several processes share the pages of one file of weights."""
        model = nn.Sequential(nn.Linear(8, 16))
        weights, names = model[0].weight, model.state_dict().keys()
        accelerate(model)
        assert model[0].weight is weights
        assert model.state_dict().keys() == names

    def test_a_model_may_read_the_weights_of_a_layer_itself(self) -> None:
        model, x = Reader().requires_grad_(False), torch.randn(3, 8)
        expected = model(x)
        accelerate(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)

    def test_other_types_and_subclasses_stay(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16), nn.MultiheadAttention(8, 2), nn.LayerNorm(8))
        kinds = [type(module) for module in model.modules()]
        accelerate(model)
        assert [type(module) for module in model.modules()] == kinds

    def test_layers_of_other_devices_stay(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8, device="meta"))
        accelerate(model)
        assert type(model[0]) is nn.Linear


def test_other_processors_keep_the_layers_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: False)
    model = nn.Sequential(nn.Linear(8, 8))
    accelerate(model)
    assert type(model[0]) is nn.Linear
