"""The language encoder gives what transformers gives for each text alone, whatever it is batched with."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    CLIPConfig,
    CLIPModel,
    FNetConfig,
    FNetModel,
    Gemma3Config,
    Gemma3Model,
    LlamaConfig,
    LlamaModel,
    NystromformerConfig,
    NystromformerModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

import support
from sharelock_ray.encoders.language import LanguageEncoder, token_batches
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError, RunError

TEXTS = [
    "a red circle .",
    "photo",
    "the small green square in the large blue picture of a circle .",
    "a photo of a unicorn",
    "blue",
]
CASES = [("decoder", "last"), ("decoder", "mean"), ("encoder", "mean"), ("encoder", "first"), ("encoder", "last")]
CASES += [(kind, pooling) for kind in ("decoder", "encoder") for pooling in ("max", "weighted_mean")]
KINDS = ["decoder", "gpt2", "encoder", "roberta", "t5"]
PROMPT = "a picture of {} in the small photo"


SIZES = {
    "vocab_size": len(support.WORDS) + 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SEES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28}
# Models that are put together in another way than most.
PECULIAR = {
    # Of a decoder's parts, but its tokens see those behind them.
    "bidirectional": (LlamaModel, LlamaConfig(**SIZES, is_causal=False)),
    # Its last MLP takes what it is added to as well.
    "bloom": (BloomModel, BloomConfig(vocab_size=SIZES["vocab_size"], hidden_size=32, n_layer=2, n_head=4)),
    # Its output is narrower than its layers, and its positions begin at 2.
    "opt": (OPTModel, OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False)),
    # It also sees, so what is of text is a part of it and of its configuration.
    "gemma3": (Gemma3Model, Gemma3Config(text_config=SIZES | {"head_dim": 8}, vision_config=SEES)),
    # Two towers; one of them reads text.
    "clip": (CLIPModel, CLIPConfig(text_config=SIZES, vision_config=SEES)),
    "siglip": (SiglipModel, SiglipConfig(text_config=SIZES, vision_config=SEES)),
    # It mixes all tokens, padding too, whatever the mask says.
    "fnet": (FNetModel, FNetConfig(**SIZES)),
    # It does so a little, by the landmarks of its attention.
    "nystromformer": (NystromformerModel, NystromformerConfig(**SIZES)),
    # It has no place for more tokens.
    "short": (BertModel, BertConfig(**SIZES, max_position_embeddings=6)),
}


def peculiar(models: Path, kind: str, **changes: object) -> LanguageSpec:
    path = models / kind
    if not path.exists():
        model, config = PECULIAR[kind]
        torch.manual_seed(0)
        model(config).save_pretrained(path)
        AutoTokenizer.from_pretrained(support.tiny_language(models).model).save_pretrained(path)
    return support.tiny_language(models, name=kind, model=str(path), **changes)


def plain(spec: LanguageSpec) -> PreTrainedModel:
    """The model as transformers gives it; of an encoder-decoder the encoder."""
    model = AutoModel.from_pretrained(spec.model).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)


def alone(spec: LanguageSpec, texts: list[str]) -> np.ndarray:
    """Each text through plain transformers, by itself, without any padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(spec.model), plain(spec)
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model(input_ids=ids).last_hidden_state[0].numpy()
        rows.append(
            {
                "last": states[-1],
                "mean": states.mean(0),
                "weighted_mean": np.average(states, axis=0, weights=range(1, len(states) + 1)),
                "first": states[0],
                "max": states.max(0),
            }[spec.pooling]
        )
    return np.stack(rows)


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_equals_transformers_on_one_text_at_a_time(models: Path, kind: str, pooling: str) -> None:
    spec = support.tiny_language(models, kind, pooling=pooling)
    encoder = LanguageEncoder(spec)
    found = encoder.encode(TEXTS)
    assert (found.shape, found.dtype) == ((5, encoder.dim), np.float32)
    np.testing.assert_allclose(found, alone(spec, TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", PECULIAR)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_of_a_peculiar_model_too(models: Path, kind: str, pooling: str) -> None:
    texts = TEXTS if kind != "short" else ["a red circle .", "photo", "a green square"]
    spec = peculiar(models, kind, pooling=pooling, max_length=6 if kind == "short" else 32)
    encoder = LanguageEncoder(spec, token_budget=100_000)
    found, expected = encoder.encode(texts), alone(spec, texts)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert expected.shape == (len(texts), encoder.dim)


def test_layers_of_one_model_may_have_several_widths(models: Path) -> None:
    encoder = LanguageEncoder(peculiar(models, "opt"), others=[peculiar(models, "opt", layer=1)])
    assert [each.shape[1] for each in encoder.encode_each(TEXTS).embeddings] == [16, 32]


class TestCompany:
    """Nothing of a text's embedding depends on the texts that share its forward pass (docs/encoders.md: tolerances)."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("pooling", ["last", "mean", "max"])
    def test_in_one_batch_is_as_alone(self, models: Path, kind: str, pooling: str) -> None:
        spec = support.tiny_language(models, kind, pooling=pooling)
        found = LanguageEncoder(spec, token_budget=100_000).encode(TEXTS)
        expected = alone(spec, TEXTS)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert support.cosine_distances(found, expected).max() < 1e-12

    @pytest.mark.parametrize("kind", KINDS)
    def test_padded_on_the_left_it_would_be_the_same(self, models: Path, kind: str) -> None:
        """Plain transformers with padding before the text, under a mask, and positions counted from its first token."""
        spec = support.tiny_language(models, kind, pooling="last")
        tokenizer, model = AutoTokenizer.from_pretrained(spec.model), plain(spec)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(i)) + i for i in ids])
        mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids])
        # T5's positions are relative; RoBERTa finds its own, behind the padding token's.
        own = kind in ("t5", "roberta")
        positions = {} if own else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        with torch.inference_mode():
            expected = model(input_ids=padded, attention_mask=mask, **positions).last_hidden_state[:, -1].numpy()
        np.testing.assert_allclose(LanguageEncoder(spec).encode(TEXTS), expected, atol=2e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_16_bits_it_moves_a_little(self, models: Path, kind: str) -> None:
        spec = support.tiny_language(models, kind, pooling="mean", dtype="bfloat16")
        one_by_one, together = (LanguageEncoder(spec, token_budget=budget).encode(TEXTS) for budget in (1, 100_000))
        assert support.cosine_distances(one_by_one, together).max() < 1e-4


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_company_and_order_change_nothing(models: Path, kind: str, pooling: str) -> None:
    spec = support.tiny_language(models, kind, pooling=pooling)
    expected = LanguageEncoder(spec).encode(TEXTS)
    order = [3, 0, 4, 2, 1]
    found = LanguageEncoder(spec).encode([TEXTS[i] for i in order])
    np.testing.assert_allclose(found, expected[order], atol=1e-5)
    for token_budget in (1, 12, 100_000):
        found = LanguageEncoder(spec, token_budget=token_budget).encode(TEXTS)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_texts_are_encoded_once(language_spec: LanguageSpec) -> None:
    encoded = LanguageEncoder(language_spec).encode_each([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
    found = encoded.only()
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0], found[3])
    assert not np.allclose(found[0], found[1])
    # A start token, then a token for each word.
    assert encoded.tokens == 5 + 2


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_any_layer_can_be_pooled(models: Path, kind: str, layer: int) -> None:
    spec = support.tiny_language(models, kind, pooling="mean", layer=layer)
    tokenizer, model = AutoTokenizer.from_pretrained(spec.model), AutoModel.from_pretrained(spec.model).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected.append(output.hidden_states[layer][0].mean(0).numpy())
    np.testing.assert_allclose(LanguageEncoder(spec).encode(TEXTS), np.stack(expected), atol=1e-5)


class TestFinalNorm:
    @pytest.mark.parametrize(("kind", "name"), [("decoder", "norm"), ("gpt2", "ln_f"), ("t5", "final_layer_norm")])
    def test_left_out_is_what_the_norm_is_given(self, models: Path, kind: str, name: str) -> None:
        spec = support.tiny_language(models, kind, pooling="last")
        tokenizer, model = AutoTokenizer.from_pretrained(spec.model), plain(spec)
        model.set_submodule(name, torch.nn.Identity())
        expected = []
        for text in TEXTS:
            with torch.inference_mode():
                expected.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].numpy())
        encoder = LanguageEncoder(spec.model_copy(update={"final_norm": False}), others=[spec])
        raw, normed = encoder.encode_each(TEXTS).embeddings
        np.testing.assert_allclose(raw, np.stack(expected), atol=1e-5)
        np.testing.assert_allclose(normed, alone(spec, TEXTS), atol=1e-5)
        assert not np.allclose(raw, normed, atol=0.01)

    @pytest.mark.parametrize("kind", ["encoder", "roberta"])
    def test_that_is_not_there_cannot_be_left_out(self, models: Path, kind: str) -> None:
        with pytest.raises(RequestError, match="has no final norm"):
            LanguageEncoder(support.tiny_language(models, kind, final_norm=False))


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_that_share_a_forward_pass_give_what_each_gives_alone(models: Path, kind: str) -> None:
    spec = support.tiny_language(models, kind)
    changes = [{"layer": 0}, {"layer": 1, "pooling": "max"}, {"layer": -1, "pooling": "first"}, {"pooling": "last"}]
    others = [spec.model_copy(update=change) for change in changes]
    encoder = LanguageEncoder(spec, token_budget=12, others=others)
    for each, found in zip([spec, *others], encoder.encode_each([*TEXTS, TEXTS[0]]).embeddings, strict=True):
        np.testing.assert_allclose(found, LanguageEncoder(each).encode([*TEXTS, TEXTS[0]]), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("decoder", {}),
        ("decoder", {"layer": 1}),
        ("decoder", {"final_norm": False}),
        ("encoder", {}),
        ("encoder", {"layer": 1}),
    ],
    ids=str,
)
def test_compiled_it_is_the_same_model(
    models: Path, kind: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = support.tiny_language(models, kind, **changes)
    # What the compiler captures is run as it is: to generate code as well takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch.compiler.reset()
    compiled = LanguageEncoder(spec, token_budget=24, compiled=True).encode(TEXTS)
    np.testing.assert_allclose(compiled, LanguageEncoder(spec, token_budget=24).encode(TEXTS), atol=1e-5)


def test_an_appended_end_is_what_last_reads(models: Path) -> None:
    spec = support.tiny_language(models, append_eos=True)
    ended = [f"{text} [SEP]" for text in TEXTS]
    plain = spec.model_copy(update={"append_eos": False})
    np.testing.assert_allclose(LanguageEncoder(spec).encode(TEXTS), LanguageEncoder(plain).encode(ended), atol=1e-5)


def test_an_end_that_the_tokenizer_appends_is_not_appended_again(models: Path) -> None:
    spec = support.tiny_language(models, "t5", pooling="last", max_length=4)
    texts = ["red", "a red circle in the picture"]
    ended = LanguageEncoder(spec.model_copy(update={"append_eos": True})).encode(texts)
    np.testing.assert_allclose(ended, alone(spec, ["red", "a red"]), atol=1e-5)


def test_a_prompt_is_put_around_each_text(models: Path) -> None:
    spec = support.tiny_language(models, prompt=PROMPT)
    plain = spec.model_copy(update={"prompt": None})
    wrapped = [PROMPT.format(text) for text in TEXTS]
    np.testing.assert_allclose(LanguageEncoder(spec).encode(TEXTS), LanguageEncoder(plain).encode(wrapped), atol=1e-5)


class TestTruncation:
    def test_takes_from_the_text_and_never_from_the_prompt(self, models: Path) -> None:
        spec = support.tiny_language(models, prompt=PROMPT, max_length=12, append_eos=True)
        encoder = LanguageEncoder(spec)
        encoded = encoder.encode_each(["red green blue circle square"])
        plain = LanguageEncoder(spec.model_copy(update={"prompt": None, "max_length": 32}))
        # [CLS], seven words of the prompt and the end leave room for three of the five.
        np.testing.assert_allclose(encoded.only(), plain.encode([PROMPT.format("red green blue")]), atol=1e-5)
        assert encoded.truncated == 1

    def test_keeps_the_start_and_is_counted(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, max_length=4))
        texts = ["a red circle .", "a red circle in the picture", "a red circle", "a red circle ."]
        encoded = encoder.encode_each(texts)
        assert (encoded.truncated, encoded.tokens) == (3, 12)  # The last is read with the first.
        found = encoded.only()
        np.testing.assert_allclose(found, np.stack([found[2]] * 4), atol=1e-5)

    def test_leaves_the_closing_token_of_an_encoder(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, "encoder", max_length=5))
        found = encoder.encode(["a red circle in the picture", "a red circle"])
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)

    def test_does_not_count_what_just_fits(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, max_length=4))
        assert encoder.encode_each(["a red circle"]).truncated == 0


def test_no_texts_give_no_rows_of_the_right_width(language_spec: LanguageSpec) -> None:
    encoder = LanguageEncoder(language_spec)
    encoded = encoder.encode_each([])
    assert (encoded.only().shape, encoded.tokens) == ((0, encoder.dim), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_no_words_still_has_an_embedding(models: Path, kind: str) -> None:
    encoder = LanguageEncoder(support.tiny_language(models, kind))
    found = encoder.encode(["", "a"])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:1], encoder.encode([""]), atol=1e-5)


class TestWeights:
    """A model is the weights of its file, or none: what the file lacks would be random numbers."""

    def encoder(self, folder: Path, spec: LanguageSpec, weights: dict[str, torch.Tensor]) -> LanguageEncoder:
        path = folder / "model"
        shutil.copytree(spec.model, path)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        return LanguageEncoder(spec.model_copy(update={"model": str(path)}))

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.model.", "model."])
    def test_are_known_by_the_names_that_training_gave_them(
        self, tmp_path: Path, language_spec: LanguageSpec, prefix: str
    ) -> None:
        weights = {f"{prefix}{name}": value for name, value in weights_of(language_spec).items()}
        found = self.encoder(tmp_path, language_spec, weights).encode(TEXTS)
        np.testing.assert_allclose(found, LanguageEncoder(language_spec).encode(TEXTS), atol=1e-6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda name, value: (f"net.{name}", value),
                "20 .embed_tokens.weight, .* unexpected: 20 .net.embed_tokens",
            ),
            (lambda name, value: None if "layers.1." in name else (name, value), "9 .layers.1.input_layernorm.weight,"),
            (lambda name, value: (name, value[:-1]) if name == "norm.weight" else (name, value), "1 .norm.weight."),
        ],
        ids=["unknown names", "a layer less", "another shape"],
    )
    def test_that_are_lacking_are_named(
        self, tmp_path: Path, language_spec: LanguageSpec, change: Callable, message: str
    ) -> None:
        weights = dict(filter(None, (change(*each) for each in weights_of(language_spec).items())))
        with pytest.raises(RequestError, match=f"missing or have the wrong shape: {message}") as error:
            self.encoder(tmp_path, language_spec, weights)
        assert "\n" not in str(error.value)

    def test_that_are_not_read_may_be_lacking(self, tmp_path: Path, models: Path) -> None:
        spec = support.tiny_language(models, "encoder")
        weights = {name: value for name, value in weights_of(spec).items() if not name.startswith("pooler.")}
        assert len(weights) == len(weights_of(spec)) - 2
        found = self.encoder(tmp_path, spec, weights).encode(TEXTS)
        np.testing.assert_allclose(found, LanguageEncoder(spec).encode(TEXTS), atol=1e-6)

    def test_that_may_run_code_are_refused(self, tmp_path: Path, language_spec: LanguageSpec) -> None:
        path = shutil.copytree(language_spec.model, tmp_path / "model")
        (path / "model.safetensors").unlink()
        torch.save(weights_of(language_spec) | {"code": Path}, path / "pytorch_model.bin")
        with pytest.raises(RequestError, match=r"can run code.*: convert it to safetensors$") as error:
            LanguageEncoder(language_spec.model_copy(update={"model": str(path)}))
        assert "\n" not in str(error.value)


def weights_of(spec: LanguageSpec) -> dict[str, torch.Tensor]:
    return load_file(Path(spec.model) / "model.safetensors")


class TestTokensOfNoEmbedding:
    """A tokenizer may know more tokens than its model."""

    def with_tokenizer(self, folder: Path, spec: LanguageSpec, **changes: object) -> LanguageSpec:
        path = shutil.copytree(spec.model, folder / "model")
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.add_tokens("unicorn")
        for name, token in changes.items():
            setattr(tokenizer, name, token)
        tokenizer.save_pretrained(path)
        return spec.model_copy(update={"model": str(path)})

    @pytest.mark.parametrize("kind", KINDS)
    def test_for_padding_is_of_no_account(self, models: Path, tmp_path: Path, kind: str) -> None:
        spec = support.tiny_language(models, kind)
        strange = self.with_tokenizer(tmp_path, spec, pad_token="unicorn")
        texts = [text for text in TEXTS if "unicorn" not in text]
        found = LanguageEncoder(strange, token_budget=1000).encode(texts)
        np.testing.assert_allclose(found, LanguageEncoder(spec).encode(texts), atol=2e-6)

    def test_in_a_text_are_named_and_no_other_text_is_lost(self, tmp_path: Path, language_spec: LanguageSpec) -> None:
        encoder = LanguageEncoder(self.with_tokenizer(tmp_path, language_spec))
        encoded = encoder.encode_each(TEXTS)
        assert encoded.unknown == {3: "unicorn"}
        assert np.flatnonzero(np.isnan(encoded.embeddings[0]).any(1)).tolist() == [3]
        expected = LanguageEncoder(language_spec).encode(TEXTS)
        np.testing.assert_allclose(np.delete(encoded.embeddings[0], 3, 0), np.delete(expected, 3, 0), atol=1e-6)
        with pytest.raises(RunError, match="input 3 has the token 'unicorn', for which the model has no embedding"):
            encoder.encode(TEXTS)

    def test_in_every_text_are_a_wrong_request(self, tmp_path: Path, language_spec: LanguageSpec) -> None:
        spec = self.with_tokenizer(tmp_path, language_spec)
        with pytest.raises(RequestError, match="has no embedding for 'unicorn', a token in every text"):
            LanguageEncoder(spec.model_copy(update={"prompt": "{} of a unicorn"}))


def test_what_reads_no_text_is_a_wrong_request(tmp_path: Path, language_spec: LanguageSpec) -> None:
    ViTModel(ViTConfig(**SEES)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(language_spec.model).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"cannot load .* as a model of texts") as error:
        LanguageEncoder(language_spec.model_copy(update={"model": str(tmp_path)}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["a folder", "an empty folder", "a folder without weights"])
def test_what_is_no_model_is_a_wrong_request(tmp_path: Path, language_spec: LanguageSpec, model: str) -> None:
    path = tmp_path / "model"
    if model != "a folder":
        path.mkdir()
    if model == "a folder without weights":
        for file in Path(language_spec.model).glob("*.json"):
            (path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RequestError, match=r"cannot load|no weights at") as error:
        LanguageEncoder(language_spec.model_copy(update={"model": str(path)}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "has 2 layers"),
        ({"layer": -4}, "has 2 layers"),
        ({"prompt": PROMPT, "max_length": 5}, "prompt alone"),
        ({"max_length": 65}, "reads at most 64 tokens"),
        ({"max_length": 64, "kind": "roberta"}, "reads at most 63 tokens"),
    ],
)
def test_what_the_model_cannot_give_is_a_wrong_request(models: Path, changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        LanguageEncoder(support.tiny_language(models, **changes))


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 64), ("encoder", 64), ("roberta", 63)])
def test_the_longest_text_is_read(models: Path, kind: str, longest: int) -> None:
    encoder = LanguageEncoder(support.tiny_language(models, kind, max_length=longest))
    assert np.isfinite(encoder.encode(["red " * 100])).all()


@pytest.mark.parametrize("prompt", ["no place", "{} and {}"])
def test_a_prompt_has_one_place_for_the_text(models: Path, prompt: str) -> None:
    with pytest.raises(ValueError, match="a prompt must contain"):
        support.tiny_language(models, prompt=prompt)


class TestTokenBatches:
    LENGTHS = np.random.default_rng(0).integers(1, 40, 500).tolist()

    @pytest.mark.parametrize("budget", [1, 40, 64, 1000, 10**6])
    def test_hold_every_text_once_within_the_budget(self, budget: int) -> None:
        batches = list(token_batches(self.LENGTHS, budget))
        assert sorted(i for batch in batches for i in batch) == list(range(500))
        for batch in batches:
            padded = len(batch) * max(self.LENGTHS[i] for i in batch)
            assert padded <= budget or len(batch) == 1

    def test_of_a_model_that_sees_padding_hold_texts_of_one_length(self) -> None:
        batches = list(token_batches(self.LENGTHS, 64, pads=False))
        assert sorted(i for batch in batches for i in batch) == list(range(500))
        assert all(len({self.LENGTHS[i] for i in batch}) == 1 for batch in batches)

    def test_waste_less_on_padding_than_texts_in_their_order(self) -> None:
        in_order = [range(start, start + 25) for start in range(0, 500, 25)]
        sorted_waste, waste = (
            sum(len(batch) * max(self.LENGTHS[i] for i in batch) for batch in batches) - sum(self.LENGTHS)
            for batches in (token_batches(self.LENGTHS, 1000), in_order)
        )
        assert sorted_waste < waste / 5

    def test_of_nothing_are_none(self) -> None:
        assert list(token_batches([], 100)) == []
