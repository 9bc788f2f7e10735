"""The language encoder gives what transformers gives for each text alone, whatever it is batched with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import support
from sharelock_ray.encoders.language import LanguageEncoder, token_batches
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError

TEXTS = [
    "a red circle .",
    "photo",
    "the small green square in the large blue picture of a circle .",
    "a photo of a unicorn",
    "blue",
]
CASES = [("decoder", "last"), ("decoder", "mean"), ("encoder", "mean"), ("encoder", "first"), ("encoder", "last")]


def alone(spec: LanguageSpec, texts: list[str]) -> np.ndarray:
    """Each text through plain transformers, by itself, without any padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(spec.model), AutoModel.from_pretrained(spec.model).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model(input_ids=ids).last_hidden_state[0].numpy()
        rows.append({"last": states[-1], "mean": states.mean(0), "first": states[0]}[spec.pooling])
    return np.stack(rows)


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_equals_transformers_on_one_text_at_a_time(models: Path, kind: str, pooling: str) -> None:
    spec = support.tiny_language(models, kind, pooling=pooling)
    encoder = LanguageEncoder(spec)
    found = encoder.encode(TEXTS)
    assert (found.shape, found.dtype) == ((5, encoder.dim), np.float32)
    np.testing.assert_allclose(found, alone(spec, TEXTS), atol=1e-5)


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
    encoder = LanguageEncoder(language_spec)
    found = encoder.encode([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
    assert (encoder.counts.texts, encoder.counts.unique) == (4, 2)
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0], found[3])
    assert not np.allclose(found[0], found[1])
    # A start token, then a token for each word.
    assert encoder.counts.tokens == 5 + 2
    encoder.encode(["blue"])
    assert (encoder.counts.texts, encoder.counts.unique, encoder.counts.tokens) == (5, 3, 9)


class TestTruncation:
    def test_keeps_the_start_and_is_counted(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, max_length=4))
        found = encoder.encode(["a red circle .", "a red circle in the picture", "a red circle"])
        assert (encoder.counts.truncated, encoder.counts.tokens) == (2, 12)
        np.testing.assert_allclose(found, np.stack([found[2]] * 3), atol=1e-5)

    def test_leaves_the_closing_token_of_an_encoder(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, "encoder", max_length=5))
        found = encoder.encode(["a red circle in the picture", "a red circle"])
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)

    def test_does_not_count_what_just_fits(self, models: Path) -> None:
        encoder = LanguageEncoder(support.tiny_language(models, max_length=4))
        encoder.encode(["a red circle"])
        assert encoder.counts.truncated == 0


def test_no_texts_give_no_rows_of_the_right_width(language_spec: LanguageSpec) -> None:
    encoder = LanguageEncoder(language_spec)
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert encoder.counts.texts == 0


def test_a_text_of_no_words_still_has_an_embedding(language_spec: LanguageSpec) -> None:
    assert np.isfinite(LanguageEncoder(language_spec).encode(["", "a"])).all()


@pytest.mark.parametrize("model", ["a folder", "an empty folder", "a folder without weights"])
def test_what_is_no_model_is_a_wrong_request(tmp_path: Path, language_spec: LanguageSpec, model: str) -> None:
    path = tmp_path / "model"
    if model != "a folder":
        path.mkdir()
    if model == "a folder without weights":
        for file in Path(language_spec.model).glob("*.json"):
            (path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RequestError, match="cannot load") as error:
        LanguageEncoder(language_spec.model_copy(update={"model": str(path)}))
    assert "\n" not in str(error.value)


class TestTokenBatches:
    LENGTHS = np.random.default_rng(0).integers(1, 40, 500).tolist()

    @pytest.mark.parametrize("budget", [1, 40, 64, 1000, 10**6])
    def test_hold_every_text_once_within_the_budget(self, budget: int) -> None:
        batches = list(token_batches(self.LENGTHS, budget))
        assert sorted(i for batch in batches for i in batch) == list(range(500))
        for batch in batches:
            padded = len(batch) * max(self.LENGTHS[i] for i in batch)
            assert padded <= budget or len(batch) == 1

    def test_waste_less_on_padding_than_texts_in_their_order(self) -> None:
        in_order = [range(start, start + 25) for start in range(0, 500, 25)]
        sorted_waste, waste = (
            sum(len(batch) * max(self.LENGTHS[i] for i in batch) for batch in batches) - sum(self.LENGTHS)
            for batches in (token_batches(self.LENGTHS, 1000), in_order)
        )
        assert sorted_waste < waste / 5

    def test_of_nothing_are_none(self) -> None:
        assert list(token_batches([], 100)) == []
