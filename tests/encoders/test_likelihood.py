"""Bits of a text: those of a plain loop over its tokens, for every model, window and layer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

import support
from sharelock_ray.encoders.likelihood import LikelihoodModel, TextBits
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError, RunError

# One token per byte: two for ü, three for €, four for the penguin.
TEXT = "A red ünit of 5 €.\n\nA 🐧 on ice, and the small blue square."
BYTES = len(TEXT.encode())
SPECIAL = ["<s>", "</s>", "<mask>"]
V = 256 + len(SPECIAL)
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
CAUSAL = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=V, n_embd=32, n_layer=3, n_head=4)),
    # Its logits are capped after the matrix.
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5)),
    # Its head reads a part of its base model, and takes narrower states than those of the layers.
    "opt": (OPTForCausalLM, OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False)),
}
MASKED = {
    "bert": (BertForMaskedLM, BertConfig(**SIZES)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SIZES)),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**SIZES)),
}


def saved(folder: Path, model: PreTrainedModel, start: bool = True, special: bool = True) -> LanguageSpec:
    """A model with a tokenizer of bytes.

    Args:
        start: whether the tokenizer puts <s> before and </s> behind a text.
        special: whether it has these tokens at all.
    """
    model.save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"} if special else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return LanguageSpec(name="tiny", model=str(folder))


def tiny(folder: Path, kind: str, **options: bool) -> LanguageSpec:
    """A random model; its weights are so large that its probabilities differ."""
    torch.manual_seed(0)
    model, config = (CAUSAL | MASKED)[kind]
    made = model(config)
    for weight in made.parameters():
        if weight.ndim == 2:
            weight.data *= 5
    return saved(folder, made, **options)


def tokens() -> list[int]:
    order = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(TEXT)
    return [order.index(character) for word, _ in split for character in word]


def bits_of(logits: torch.Tensor, token: int) -> float:
    return -float(logits.double().log_softmax(0)[token]) / math.log(2)


@torch.inference_mode()
def token_by_token(spec: LanguageSpec, context: int, stride: int) -> list[float]:
    """The last token's bits of a forward pass for each token, without anything that predicts no token."""
    model, ids = AutoModelForCausalLM.from_pretrained(spec.model).eval(), tokens()
    found = []
    for i, token in enumerate(ids):
        end = min(len(ids), (i // stride + 1) * stride)
        before = [256, *ids[max(0, end - context) : i]]
        assert len(before) <= context
        found.append(bits_of(model(torch.tensor([before])).logits[0, -1], token))
    return found


@torch.inference_mode()
def mask_by_mask(spec: LanguageSpec, room: int) -> list[float]:
    """One forward pass for each token, which is masked among `room` tokens."""
    model, ids = AutoModelForMaskedLM.from_pretrained(spec.model).eval(), tokens()
    found = []
    for i, token in enumerate(ids):
        begin = max(0, min(i - room // 2, len(ids) - room))
        row = [256, *ids[begin:i], 258, *ids[i + 1 : begin + room], 257]
        found.append(bits_of(model(torch.tensor([row])).logits[0, 1 + i - begin], token))
    return found


class TestCausalModels:
    @pytest.mark.parametrize("kind", CAUSAL)
    def test_bits_are_those_of_a_loop_over_tokens(self, kind: str, tmp_path: Path) -> None:
        spec = tiny(tmp_path, kind)
        [found] = LikelihoodModel(spec).bits(TEXT, context=200, stride=100).bits
        np.testing.assert_allclose(found, token_by_token(spec, 200, 100), rtol=1e-4)
        assert found.dtype == np.float64
        assert found.std() > 0.1

    @pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 1), (16, 15), (7, 3), (2, 1)])
    def test_each_token_is_scored_once_from_the_end_of_a_window(
        self, context: int, stride: int, tmp_path: Path
    ) -> None:
        spec = tiny(tmp_path, "llama")
        counted: list[int] = []
        found = LikelihoodModel(spec).bits(TEXT, context, stride, counted.append)
        np.testing.assert_allclose(found.bits[0], token_by_token(spec, context, stride), rtol=1e-4)
        assert sum(counted) == len(found.starts) == BYTES

    def test_the_sum_is_the_loss_of_transformers(self, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "llama")
        ids = torch.tensor([[256, *tokens()]])
        with torch.inference_mode():
            loss = float(AutoModelForCausalLM.from_pretrained(spec.model).eval()(ids, labels=ids).loss)
        [found] = LikelihoodModel(spec).bits(TEXT).bits
        assert found.sum() / BYTES == pytest.approx(loss / math.log(2) * len(found) / BYTES, rel=1e-5)

    def test_equal_probabilities_cost_the_logarithm_of_the_vocabulary(self, tmp_path: Path) -> None:
        model = LlamaForCausalLM(CAUSAL["llama"][1])
        model.lm_head.weight.data.zero_()
        [found] = LikelihoodModel(saved(tmp_path, model)).bits(TEXT).bits
        assert found.sum() / BYTES == pytest.approx(math.log2(V) * len(found) / BYTES, rel=1e-6)

    def test_the_size_of_a_forward_pass_does_not_matter(self, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "llama")
        # The last window scores a single token.
        one, many = (LikelihoodModel(spec, token_budget=budget).bits(TEXT, 16, 9) for budget in (1, 1000))
        np.testing.assert_allclose(one.bits[0], many.bits[0], rtol=1e-5)

    def test_nor_does_how_many_logits_exist_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = LikelihoodModel(tiny(tmp_path, "llama"))
        before = model.bits(TEXT)
        monkeypatch.setattr("sharelock_ray.encoders.likelihood._LOGITS", 3 * V)
        np.testing.assert_allclose(model.bits(TEXT).bits[0], before.bits[0], rtol=1e-5)


class TestFirstToken:
    def test_follows_the_start_token_that_the_tokenizer_has_but_does_not_add(self, tmp_path: Path) -> None:
        with_it, without = (tiny(tmp_path / name, "llama", start=name == "adds") for name in ("adds", "has"))
        assert (LikelihoodModel(with_it).bits(TEXT).bits[0] == LikelihoodModel(without).bits(TEXT).bits[0]).all()

    def test_is_one_of_the_vocabulary_without_such_a_token(self, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "llama", start=False, special=False)
        [found] = LikelihoodModel(spec).bits(TEXT, context=16, stride=8).bits
        assert found[0] == math.log2(V)
        model, ids = AutoModelForCausalLM.from_pretrained(spec.model).eval(), tokens()
        with torch.inference_mode():
            logits = model(torch.tensor([ids[:9]])).logits[0]
        np.testing.assert_allclose(found[1:9], [bits_of(logits[i], ids[i + 1]) for i in range(8)], rtol=1e-4)


class TestMaskedModels:
    @pytest.mark.parametrize("kind", MASKED)
    def test_bits_are_those_of_one_mask_at_a_time(self, kind: str, tmp_path: Path) -> None:
        spec = tiny(tmp_path, kind)
        model = LikelihoodModel(spec)
        assert model.kind == "masked"
        [found] = model.bits(TEXT, context=200).bits
        np.testing.assert_allclose(found, mask_by_mask(spec, BYTES), rtol=1e-3)

    @pytest.mark.parametrize("context", [3, 4, 12, 13])
    def test_a_token_stands_in_the_middle_of_its_window(self, context: int, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "bert")
        counted: list[int] = []
        [found] = LikelihoodModel(spec).bits(TEXT, context, progress=counted.append).bits
        np.testing.assert_allclose(found, mask_by_mask(spec, context - 2), rtol=1e-3)
        assert sum(counted) == BYTES


def ridge(states: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map of standardised states with a penalty of 0.03 on each weight, as a matrix and an offset."""
    mean, scale = states.mean(0), states.std(0)
    inputs = np.concatenate([(states - mean) / scale, math.sqrt(0.03 * len(states)) * np.eye(states.shape[1])])
    outputs = np.concatenate([targets - targets.mean(0), np.zeros((states.shape[1], targets.shape[1]))])
    matrix = np.linalg.lstsq(inputs, outputs, rcond=None)[0] / scale[:, None]
    return matrix, targets.mean(0) - mean @ matrix


class TestLayers:
    @pytest.mark.parametrize("kind", ["llama", "gemma2"])
    def test_are_read_by_the_head_after_a_map_fitted_on_the_other_half(self, kind: str, tmp_path: Path) -> None:
        spec = tiny(tmp_path, kind)
        layers = [1, -2, 3, -1, None]
        model = LikelihoodModel(spec, layers=layers)
        found = model.bits(TEXT).bits
        plain, ids = AutoModelForCausalLM.from_pretrained(spec.model).eval(), tokens()
        with torch.inference_mode():
            output = plain.model(torch.tensor([[256, *ids[:-1]]]), output_hidden_states=True)
            last, half = output.last_hidden_state[0].numpy(), BYTES // 2
            for layer, bits in zip(layers[:2], found[:2], strict=True):
                states = output.hidden_states[layer][0].numpy()
                for fitted, read in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
                    matrix, offset = ridge(states[fitted], last[fitted])
                    logits = plain.lm_head(torch.tensor(states[read] @ matrix + offset).float())
                    if kind == "gemma2":
                        logits = 0.5 * (logits / 0.5).tanh()
                    expected = [bits_of(*each) for each in zip(logits, ids[read], strict=True)]
                    np.testing.assert_allclose(bits[read], expected, rtol=1e-2, atol=1e-2)
        assert model.readouts == ["linear", "linear", "head", "head", "head"]
        for each in found[2:4]:
            assert (each == found[4]).all()

    def test_of_masked_models_too(self, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "bert")
        layer, last = LikelihoodModel(spec, layers=[2, None]).bits(TEXT, context=200).bits
        np.testing.assert_allclose(last, mask_by_mask(spec, BYTES), rtol=1e-3)
        assert np.isfinite(layer).all()
        assert (layer != last).all()

    def test_need_a_text_to_fit_the_map_on(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="has 3 tokens, too few to read a layer before the last: at least 64"):
            LikelihoodModel(tiny(tmp_path, "llama"), layers=[1]).bits("abc")

    def test_count_the_parameters_that_they_depend_on(self, tmp_path: Path) -> None:
        spec = tiny(tmp_path, "llama")
        model = LlamaForCausalLM.from_pretrained(spec.model).model
        layer = sum(weight.numel() for weight in model.layers[0].parameters())
        whole = sum(weight.numel() for weight in model.parameters())
        assert LikelihoodModel(spec, layers=[None, 2, 0]).parameters == [whole, whole - layer, whole - 3 * layer]

    def test_that_a_model_lacks_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="has 3 layers: set `layer` from -4 to 3"):
            LikelihoodModel(tiny(tmp_path, "llama"), layers=[4])


class TestPlaces:
    @pytest.fixture
    def found(self, tmp_path: Path) -> TextBits:
        return LikelihoodModel(tiny(tmp_path, "llama")).bits(TEXT)

    def test_tokens_begin_at_the_bytes_of_their_characters(self, found: TextBits) -> None:
        character = [i for i, each in enumerate(TEXT) for _ in each.encode()]
        first = {i: character.index(i) for i in character}
        assert found.starts.tolist() == [first[i] for i in character]

    def test_a_tokenizer_of_bytes_loses_nothing(self, found: TextBits) -> None:
        assert found.lossless

    def test_one_of_words_does(self, decoder_of_words: LanguageSpec) -> None:
        assert not LikelihoodModel(decoder_of_words).bits("a red  circle\n of unicorns", 64, 32).lossless

    @pytest.fixture
    def decoder_of_words(self, tmp_path: Path, models: Path) -> LanguageSpec:
        spec = support.tiny_language(models)
        LlamaForCausalLM(LlamaConfig.from_pretrained(spec.model)).save_pretrained(tmp_path / "words")
        PreTrainedTokenizerFast.from_pretrained(spec.model).save_pretrained(tmp_path / "words")
        return spec.model_copy(update={"model": str(tmp_path / "words")})


def refusal(spec: LanguageSpec) -> str:
    with pytest.raises(RequestError) as error:
        LikelihoodModel(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestRefusals:
    def test_of_models_that_were_saved_without_their_head(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        llama = saved(tmp_path / "llama", LlamaModel(CAUSAL["llama"][1]))
        assert "has no trained head that predicts tokens: weights are missing or have the wrong shape: 1 (lm_head" in (
            refusal(llama)
        )
        assert "has no trained head that predicts tokens" in refusal(
            saved(tmp_path / "bert", BertModel(MASKED["bert"][1]))
        )
        # Else transformers lists them on several lines.
        assert "MISSING" not in capfd.readouterr().err

    def test_not_of_one_whose_head_is_its_embeddings(self, tmp_path: Path) -> None:
        whole = tiny(tmp_path / "whole", "tied")
        base = saved(tmp_path / "base", LlamaForCausalLM.from_pretrained(whole.model).model)
        assert (LikelihoodModel(base).bits(TEXT).bits[0] == LikelihoodModel(whole).bits(TEXT).bits[0]).all()

    def test_of_encoder_decoders(self, tmp_path: Path) -> None:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
        spec = saved(tmp_path, T5ForConditionalGeneration(T5Config(vocab_size=V, **sizes)))
        assert "is an encoder-decoder, which has no likelihood of a text alone" in refusal(spec)

    def test_of_models_that_predict_no_tokens(self, tmp_path: Path) -> None:
        sees = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        spec = saved(tmp_path, CLIPModel(CLIPConfig(text_config=SIZES, vision_config=sees | {"image_size": 28})))
        assert "(clip) has no head that predicts tokens" in refusal(spec)

    def test_of_decoders_whose_tokens_see_those_behind_them(self, tmp_path: Path) -> None:
        spec = saved(tmp_path, LlamaForCausalLM(LlamaConfig(**SIZES, is_causal=False)))
        assert "sees the tokens that it would have to predict: it is no causal model" in refusal(spec)

    def test_of_masked_models_without_a_mask(self, tmp_path: Path) -> None:
        assert "has no mask token" in refusal(tiny(tmp_path, "bert", special=False))

    @pytest.mark.parametrize(
        ("kind", "context", "stride", "message"),
        [
            ("llama", 1, 1, "a context of 1 tokens is too short for .*: at least 2"),
            ("llama", 8, 8, "a stride of 8 tokens: choose one from 1 to 7"),
            ("llama", 8, 0, "choose one from 1 to 7"),
            ("bert", 2, 1, "at least 3"),
            ("bert", 600, 1, "reads at most 512 tokens: reduce the context, for all models that are compared"),
        ],
    )
    def test_of_windows_that_cannot_be(
        self, kind: str, context: int, stride: int, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError, match=message):
            LikelihoodModel(tiny(tmp_path, kind)).bits(TEXT, context, stride)

    def test_of_a_text_without_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="the text has no tokens"):
            LikelihoodModel(tiny(tmp_path, "llama")).bits("")

    def test_of_tokens_without_an_embedding(self, tmp_path: Path) -> None:
        spec = saved(tmp_path, GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=4)), start=False)
        with pytest.raises(RequestError, match=r"has no embedding for .*, a token of the text: check its tokenizer"):
            LikelihoodModel(spec).bits("€")

    def test_of_probabilities_that_are_not_finite(self, tmp_path: Path) -> None:
        model = LlamaForCausalLM(CAUSAL["llama"][1])
        model.lm_head.weight.data[tokens()[3]] = math.nan
        with pytest.raises(
            RunError, match=r"gives 64 of 64 tokens no finite probability, the first is 'A' \(token 0\)"
        ):
            LikelihoodModel(saved(tmp_path, model)).bits(TEXT)
