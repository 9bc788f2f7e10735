"""A language model in a GGUF file embeds as the model that was quantised into it, and is converted once per node."""

import json
import os
import shutil
import stat
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, LlamaModel

import support
from sharelock_ray.encoders.gguf import converted
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.likelihood import LikelihoodModel
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.chunks import Chunk, encode_language
from sharelock_ray.features.manifest import read_manifest
from sharelock_ray.sources.sample import Sample

# In the tokenizer's order: single characters (Ġ is a space), then merged ones.
TOKENS = ["<|endoftext|>", "Ġ", *string.ascii_lowercase, *string.digits, ".", "re", "red"]
MERGES = ["r e", "re d"]
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
HELD = "llama (GGUF: 5 F32, 15 Q8_0)"
needs_extra = pytest.mark.usefixtures("extra")


@pytest.fixture
def extra() -> None:
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason="needs the extra [gguf]")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def quantised() -> dict[str, torch.Tensor]:
    """A Llama's weights. Those with two dimensions are as gguf dequantises them from 8 bits."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    torch.manual_seed(0)
    weights = {name: 3 * value for name, value in LlamaModel(CONFIG).state_dict().items()}
    q8 = GGMLQuantizationType.Q8_0
    return {
        name: torch.from_numpy(dequantize(quantize(value.numpy(), q8), q8)) if value.ndim == 2 else value
        for name, value in weights.items()
    }


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    tokenizer: bool = True,
    without: str = "none",
    change: Callable[[Any], None] = lambda writer: None,
) -> Path:
    """The model of `quantised` as llama.cpp's converter writes it, without tensors that have `without` in their name.

    `change` may write more.
    """
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_dimension_count(CONFIG.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_merges(MERGES)
        writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
        writer.add_eos_token_id(0)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, CONFIG.num_hidden_layers)
    for name, value in quantised().items():
        if without in name:
            continue
        tensor, q8 = value.numpy(), GGMLQuantizationType.Q8_0
        for part, heads in (("q_proj", CONFIG.num_attention_heads), ("k_proj", CONFIG.num_key_value_heads)):
            if part in name:
                # llama.cpp has the two numbers that are rotated together next to each other.
                tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        key = names.get_name(f"model.{name}", try_suffixes=(".weight",))
        if tensor.ndim == 2:
            writer.add_tensor(key, quantize(tensor, q8), raw_dtype=q8)
        else:
            writer.add_tensor(key, tensor)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spec_of(model: object, **changes: object) -> LanguageSpec:
    settings = {"name": "tiny", "model": str(model), "pooling": "mean", "max_length": 32}
    return LanguageSpec(**(settings | changes))


def refusal(spec: LanguageSpec) -> str:
    with pytest.raises(RequestError) as error:
        LanguageEncoder(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


@needs_extra
class TestConversion:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return write_gguf(tmp_path / "tiny.gguf")

    def test_gives_the_weights_that_gguf_dequantises(self, file: Path) -> None:
        found = load_file(converted(spec_of(file)) / "model.safetensors")
        expected = quantised()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name

    def test_gives_the_embeddings_of_the_model_itself(self, file: Path) -> None:
        model = LlamaModel(CONFIG).eval()
        model.load_state_dict(quantised())
        ids = [TOKENS.index(token) for token in ("red", "Ġ", "a", "4", ".")]
        with torch.inference_mode():
            states = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        found = LanguageEncoder(spec_of(file)).encode(["red a4.", "a longer text beside it"])
        np.testing.assert_allclose(found[0], states.mean(0), atol=1e-5)

    def test_keeps_a_head_that_is_not_the_table_of_embeddings(self, file: Path, tmp_path: Path) -> None:
        head = np.random.default_rng(0).normal(size=(len(TOKENS), 64)).astype(np.float32)
        untied = write_gguf(tmp_path / "untied.gguf", change=lambda writer: writer.add_tensor("output.weight", head))
        found = load_file(converted(spec_of(untied), head=True) / "model.safetensors")
        np.testing.assert_array_equal(found["lm_head.weight"].numpy(), head)
        assert LikelihoodModel(spec_of(untied)).bits("red a4.", 8, 4).bits[0].size == 5
        # The encoder's own folder has no head, and other files need no second one.
        assert "lm_head.weight" not in load_file(converted(spec_of(untied)) / "model.safetensors")
        assert converted(spec_of(file), head=True) == converted(spec_of(file))

    def test_is_named_by_content_and_dtype(self, file: Path, cache: Path) -> None:
        for dtype in ("float32", "bfloat16"):
            spec = spec_of(file, dtype=dtype)
            assert converted(spec) == cache / f"{spec.weights_digest()}-{dtype}"
        (stored,) = {value.dtype for value in load_file(converted(spec) / "model.safetensors").values()}
        assert stored == torch.bfloat16
        assert not list(cache.glob("*.partial"))

    def test_is_not_repeated(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = LanguageEncoder(spec_of(file))
        # A node that has the folder does not even need the package.
        monkeypatch.setitem(sys.modules, "gguf", None)
        again = LanguageEncoder(spec_of(file))
        assert again.weights_format == first.weights_format == HELD
        assert (again.encode(["red"]) == first.encode(["red"])).all()

    def test_is_shared_by_copies_wherever_they_lie(self, file: Path, tmp_path: Path) -> None:
        folder = converted(spec_of(file))
        made = (folder / "model.safetensors").stat().st_ino
        copy = shutil.copy(file, tmp_path / "other.gguf")
        for place in (copy, f"local://{copy}"):
            assert spec_of(place).folder() == spec_of(file).folder()
            assert converted(spec_of(place)) == folder
        assert (folder / "model.safetensors").stat().st_ino == made

    def test_is_repeated_for_another_file_in_its_place(self, file: Path) -> None:
        first = converted(spec_of(file))
        write_gguf(file, change=lambda writer: writer.add_description("another"))
        assert converted(spec_of(file)) != first

    @pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
    def test_makes_files_whose_permissions_follow_the_umask(self, umask: int, file: Path) -> None:
        before = os.umask(umask)
        try:
            folder = converted(spec_of(file))
        finally:
            os.umask(before)
        assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o666 & ~umask}

    def test_reads_nothing_beside_the_file(self, file: Path) -> None:
        (file.parent / "config.json").write_text("{}")
        (file.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        assert LanguageEncoder(spec_of(file)).encode(["red"]).shape == (1, 64)

    def test_of_two_processes_is_done_by_one(self, file: Path, tmp_path: Path) -> None:
        printed = support.run_together(CONVERT, str(file), processes=2)
        found = [json.loads(text.splitlines()[-1]) for text in printed]
        assert found[0]["folder"] == found[1]["folder"]
        assert sorted(each["saved"] for each in found) == [0, 1]


CONVERT = """
import json, sys
from transformers import LlamaModel
from sharelock_ray.encoders.gguf import converted
from sharelock_ray.encoders.spec import LanguageSpec

saved, save = [], LlamaModel.save_pretrained
LlamaModel.save_pretrained = lambda model, *args, **kwargs: (saved.append(1), save(model, *args, **kwargs))
print("ready", flush=True)
sys.stdin.readline()
folder = converted(LanguageSpec(name="tiny", model=sys.argv[1]))
print(json.dumps({"folder": str(folder), "saved": len(saved)}))
"""


@needs_extra
class TestRecorded:
    def test_in_the_manifest_are_architecture_and_quantisation(self, tmp_path: Path) -> None:
        spec = spec_of(write_gguf(tmp_path / "tiny.gguf"))
        chunk = Chunk(0, 0, True, "memory/00000.tar", [Sample("00000/0", None, captions=("red", "a"))], [])
        uri = support.write_parts(str(tmp_path / "set"), spec, [encode_language(LanguageEncoder(spec), chunk)])
        manifest = read_manifest(uri)
        assert manifest.weights_formats == manifest.parts[0].weights_formats == (HELD,)
        assert manifest.weights_sha256 == spec.weights_digest()

    def test_is_nothing_for_other_models(self, language_spec: LanguageSpec) -> None:
        assert LanguageEncoder(language_spec).weights_format is None

    def test_is_the_commit_of_a_file_on_the_hub(self, tmp_path: Path) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "hub" / "hub" / "models--someone--tiny-gguf"
        file = write_gguf(repository / "snapshots" / commit / "q8" / "tiny.gguf")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        env = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["revisions"] == [commit, commit]
        assert found["digest"] is None
        assert found["embedding"] == LanguageEncoder(spec_of(file)).encode(["red"]).tolist()


LOAD = """
import json
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec

spec = LanguageSpec(name="tiny", model="someone/tiny-gguf/q8/tiny.gguf", pooling="mean", max_length=32)
encoder = LanguageEncoder(spec)
print(json.dumps({
    "revisions": [encoder.revision, spec.commit()],
    "digest": spec.weights_digest(),
    "embedding": encoder.encode(["red"]).tolist(),
}))
"""


@needs_extra
class TestScaledPositions:
    """Of the position encoding, transformers reads the base alone."""

    @pytest.fixture
    def llama_3(self) -> LlamaConfig:
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        return LlamaConfig(**CONFIG.to_dict() | {"rope_parameters": rope})

    @pytest.fixture
    def factors(self, llama_3: LlamaConfig) -> np.ndarray:
        """What the file has of them: divisors of the frequencies."""
        plain, scaled = (LlamaModel(config).rotary_emb.inv_freq.numpy() for config in (CONFIG, llama_3))
        return plain / scaled

    def with_factors(self, path: Path, factors: np.ndarray) -> LanguageSpec:
        return spec_of(write_gguf(path, change=lambda writer: writer.add_tensor("rope_freqs.weight", factors)))

    def test_of_llama_3_are_kept(self, tmp_path: Path, llama_3: LlamaConfig, factors: np.ndarray) -> None:
        assert len(set(factors.round(3))) > 2
        folder = converted(self.with_factors(tmp_path / "tiny.gguf", factors))
        assert AutoConfig.from_pretrained(folder).rope_parameters == llama_3.rope_parameters

    def test_by_other_factors_are_refused(self, tmp_path: Path, factors: np.ndarray) -> None:
        factors[-2] *= 1.1
        message = refusal(self.with_factors(tmp_path / "tiny.gguf", factors))
        assert "scales its positions (rope_freqs.weight), which transformers does not read" in message

    def test_of_other_kinds_are_refused(self, tmp_path: Path) -> None:
        from gguf import RopeScalingType

        file = write_gguf(
            tmp_path / "a.gguf", change=lambda writer: writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        )
        assert "scales its positions (linear), which transformers does not read" in refusal(spec_of(file))


@needs_extra
class TestRefuses:
    @pytest.mark.parametrize("kept", [0.002, 0.1, 0.5, 0.999])
    def test_a_file_that_is_cut_off(self, kept: float, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf")
        data = file.read_bytes()
        file.write_bytes(data[: int(kept * len(data))])
        assert f"{file} is no complete GGUF file ({file.stat().st_size:,} bytes; " in refusal(spec_of(file))

    @pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"])
    def test_a_file_that_is_none(self, content: bytes, tmp_path: Path) -> None:
        file = tmp_path / "tiny.gguf"
        file.write_bytes(content)
        assert "is no complete GGUF file" in refusal(spec_of(file))

    def test_an_architecture_that_transformers_does_not_know(self, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", architecture="rwkv9")
        assert f"does not read {file}, a GGUF file of the architecture 'rwkv9'" in refusal(spec_of(file))

    def test_a_file_without_a_tokenizer(self, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", tokenizer=False)
        assert f"{file} has no tokenizer (tokenizer.ggml.tokens)" in refusal(spec_of(file))

    def test_one_of_several_parts(self, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", change=lambda writer: writer.add_uint16("split.count", 3))
        assert f"{file} is one of 3 parts: merge them" in refusal(spec_of(file))

    def test_a_file_that_lacks_weights(self, tmp_path: Path) -> None:
        file = write_gguf(tmp_path / "tiny.gguf", without="layers.1.mlp.up")
        message = refusal(spec_of(file))
        assert "is incomplete: weights are missing or have the wrong shape: 1 (layers.1.mlp.up_proj.weight)" in message

    def test_keeps_nothing_in_the_cache(self, tmp_path: Path, cache: Path) -> None:
        refusal(spec_of(write_gguf(tmp_path / "tiny.gguf", architecture="rwkv9")))
        assert not list(cache.glob("*-float32"))


class TestMissing:
    @pytest.mark.parametrize("model", ["/nowhere/tiny.gguf", "./tiny.gguf", "tiny.gguf", "memory://tiny.gguf"])
    def test_files_are_found_out_before_anything_is_loaded(self, model: str) -> None:
        with pytest.raises(RequestError, match=r"no weights at .*tiny\.gguf: check the recipe's"):
            spec_of(model).folder()
        assert "no weights at" in refusal(spec_of(model))

    def test_files_may_be_meant_to_be_on_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = refusal(spec_of("someone/none/tiny.gguf"))
        assert message.startswith("someone/none/tiny.gguf is neither a file here nor on the hub: ")

    @pytest.mark.parametrize("package", ["gguf", "accelerate"])
    def test_packages_are_named_with_the_extra(
        self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
        monkeypatch.setitem(sys.modules, package, None)
        message = refusal(spec_of(tmp_path / "tiny.gguf"))
        assert package in message
        assert message.endswith("pip install 'sharelock-ray[gguf]'")
