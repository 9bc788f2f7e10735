"""The last layer computed for one token of each input, against the whole model."""

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from sharelock_ray.encoders.last_layer import layers_of, only_one_token

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
# Parallel to attention (gpt_neox), between norms (gemma2, olmo2), bidirectional (modernbert), experts with and without
# their scores (gpt_oss, qwen3_moe).
KINDS = ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "phi3", "qwen3", "modernbert", "gpt_oss", "qwen3_moe"]
FEW_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_token_is_that_of_the_whole_model(kind: str) -> None:
    torch.manual_seed(0)
    experts = FEW_EXPERTS if kind in ("gpt_oss", "qwen3_moe") else {}
    whole = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES, **experts, head_dim=8)).eval()
    fast = copy.deepcopy(whole)
    last = only_one_token(layers_of(fast, 3)[-1])
    assert last is not None
    lengths = torch.tensor([7, 4, 1])
    ids = torch.randint(1, 50, (3, 7))
    mask = (torch.arange(7) < lengths[:, None]).long()
    last.positions = lengths - 1
    rows = torch.arange(3)
    with torch.inference_mode():
        expected, found = (
            model(input_ids=ids, attention_mask=mask).last_hidden_state[rows, lengths - 1] for model in (whole, fast)
        )
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_it_computes_a_token_of_each_text() -> None:
    model = AutoModel.from_config(CONFIG_MAPPING["llama"](**SIZES)).eval()
    seen = []
    for layer in model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    last = only_one_token(model.layers[-1])
    last.positions = torch.tensor([6, 2])
    with torch.inference_mode():
        model(input_ids=torch.ones(2, 7, dtype=torch.long))
    assert seen == [14, 14, 2]


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_layers_of_another_form_stay_whole(kind: str) -> None:
    model = AutoModel.from_config(CONFIG_MAPPING[kind](vocab_size=50, num_hidden_layers=2))
    assert only_one_token(layers_of(model, 2)[-1]) is None
