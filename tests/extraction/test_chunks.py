"""Encoding of a chunk: every input becomes a row or a reject, also when memory runs out."""

import errno
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import support
from sharelock_ray.encoders.images import Preprocessing, upright
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RunError
from sharelock_ray.extraction.chunks import Chunk, decode, encode_language, encode_vision
from sharelock_ray.sources.sample import Sample

CAPTIONS = [
    ("a red circle", "photo"),
    (),
    ("the small green square in the large blue picture of a circle .",),
    ("blue",),
]


@pytest.fixture
def chunk(vision_spec: VisionSpec) -> Chunk:
    """Four samples: one without a caption, and one with a broken image."""
    samples = [
        Sample(key=f"{i}", image=support.jpeg(seed=i) if i != 3 else b"", captions=captions, label=i)
        for i, captions in enumerate(CAPTIONS)
    ]
    return decode(Chunk(0, 0, True, "memory/0.tar", samples, []), {vision_spec.preprocessing})


class TestDecoding:
    # The first two decode at full scale, the last at half scale.
    PREPROCESSINGS = tuple(
        Preprocessing(image_size=size, resize=resize, interpolation="bicubic")
        for size, resize in ((32, 40), (40, 40), (16, 20))
    )

    def of(self, preprocessings: Sequence[Preprocessing]) -> Chunk:
        images = [support.jpeg(size=(120, 90), seed=1), b"no image", None, support.jpeg(size=(90, 120), seed=2)]
        samples = [Sample(key=f"{i}", image=image, captions=(), label=None) for i, image in enumerate(images)]
        return decode(Chunk(0, 0, True, "memory/0.tar", samples, []), preprocessings)

    def test_for_several_encoders_equals_that_for_each(self) -> None:
        together = self.of(self.PREPROCESSINGS).pixels
        for preprocessing in self.PREPROCESSINGS:
            found, alone = together[preprocessing], self.of([preprocessing]).pixels[preprocessing]
            assert (found.rows, found.rejects) == (alone.rows, alone.rejects)
            assert found.rows == [0, 3]
            assert [reject.key for reject in found.rejects] == ["1", "2"]
            np.testing.assert_array_equal(found.images, alone.images)

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), *(OSError(number, "no resources") for number in (errno.ENOMEM, errno.ENOSPC, errno.EMFILE))],
        ids=repr,
    )
    def test_raises_without_resources_and_rejects_no_image(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: object) -> None:
            raise error

        monkeypatch.setattr("sharelock_ray.extraction.chunks.decode_image", fail)
        with pytest.raises(RunError, match=f"decoding 0 failed for lack of resources .{type(error).__name__}"):
            self.of(self.PREPROCESSINGS)

    def test_reads_each_scale_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[tuple[int, int]] = []

        def watched(image: Image.Image) -> Image.Image:
            decoded.append(image.size)
            return upright(image)

        monkeypatch.setattr("sharelock_ray.encoders.images.upright", watched)
        self.of(self.PREPROCESSINGS)
        assert decoded == [(120, 90), (60, 45), (90, 120), (45, 60)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits for memory that another process may release."""
    monkeypatch.setattr("sharelock_ray.encoders.passes._WAITS_S", (0.01,))


def limit_memory(module: torch.nn.Module, fits) -> None:
    """Makes the module raise torch's out-of-memory error for inputs that `fits` rejects, as a small device would."""

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not fits(inputs[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    module.register_forward_pre_hook(check)


class TestVision:
    def test_two_readings_give_a_chunk_each_with_the_same_rejects(self, models: Path, chunk: Chunk) -> None:
        spec = support.tiny_vision(models, model="test_convnext", weights=convnext(models))
        raw = spec.model_copy(update={"final_norm": False})
        both = encode_vision(VisionEncoder(spec, others=[raw]), chunk, spec.preprocessing)
        for found, each in zip(both, (spec, raw), strict=True):
            (alone,) = encode_vision(VisionEncoder(each), chunk, spec.preprocessing)
            assert found.columns == alone.columns == {"key": ["0", "1", "2"], "label": [0, 1, 2]}
            assert found.rejects == alone.rejects
            np.testing.assert_allclose(found.embeddings, alone.embeddings, atol=1e-5)
        # The time of the forward pass is counted once.
        assert both[0].seconds == both[1].seconds > 0

    def test_halves_the_batch_and_counts_it(self, vision_spec: VisionSpec, chunk: Chunk) -> None:
        encoder = VisionEncoder(vision_spec, batch_size=3)
        limit_memory(encoder._model.conv1, lambda images: len(images) <= 1)
        (found,) = encode_vision(encoder, chunk, vision_spec.preprocessing)
        (expected,) = encode_vision(VisionEncoder(vision_spec), chunk, vision_spec.preprocessing)
        np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-5)
        assert (found.batch_reductions, encoder.batch_size, found.rejects) == (1, 1, expected.rejects)
        (again,) = encode_vision(encoder, chunk, vision_spec.preprocessing)
        assert again.batch_reductions == 0

    def test_an_image_that_does_not_fit_is_a_reject(self, vision_spec: VisionSpec, chunk: Chunk) -> None:
        (expected,) = encode_vision(VisionEncoder(vision_spec), chunk, vision_spec.preprocessing)
        white = np.full((1, 32, 32, 3), 255, np.uint8)
        chunk.pixels[vision_spec.preprocessing].images[1] = white
        encoder = VisionEncoder(vision_spec)
        limit_memory(encoder._model.conv1, lambda images: images.amin(dim=(1, 2, 3)).max() < 1)
        (found,) = encode_vision(encoder, chunk, vision_spec.preprocessing)
        assert found.columns == {"key": ["0", "2"], "label": [0, 2]}
        np.testing.assert_allclose(found.embeddings, expected.embeddings[[0, 2]], rtol=1e-4, atol=1e-5)
        assert [(r.key, r.stage, r.error) for r in found.rejects if r.stage == "encode"] == [
            ("1", "encode", "OutOfMemory")
        ]


def convnext(models: Path) -> str:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = models / "convnext.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=0).state_dict(), path)
    return str(path)


class TestLanguage:
    def test_two_layers_give_a_chunk_each_with_the_same_captions(
        self, language_spec: LanguageSpec, chunk: Chunk
    ) -> None:
        other = language_spec.model_copy(update={"layer": 1})
        both = encode_language(LanguageEncoder(language_spec, others=[other]), chunk)
        for found, each in zip(both, (language_spec, other), strict=True):
            (alone,) = encode_language(LanguageEncoder(each), chunk)
            assert found.columns == alone.columns
            assert (found.tokens, found.rejects) == (alone.tokens, alone.rejects)
            np.testing.assert_allclose(found.embeddings, alone.embeddings, atol=1e-5)

    def test_halves_the_token_budget_and_counts_it(self, language_spec: LanguageSpec, chunk: Chunk) -> None:
        encoder = LanguageEncoder(language_spec, token_budget=1000)
        limit_memory(encoder._model.layers[0], lambda states: states.shape[0] * states.shape[1] <= 16)
        (found,) = encode_language(encoder, chunk)
        (expected,) = encode_language(LanguageEncoder(language_spec), chunk)
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)
        # Four captions padded to 14 tokens fail; a budget of 1000 / 32 = 31 tokens splits them.
        assert (found.batch_reductions, encoder.token_budget) == (1, 31)

    def test_a_caption_that_does_not_fit_is_a_reject(self, language_spec: LanguageSpec, chunk: Chunk) -> None:
        encoder = LanguageEncoder(language_spec)
        limit_memory(encoder._model.layers[0], lambda states: states.shape[1] <= 10)
        (found,) = encode_language(encoder, chunk)
        assert found.columns == {
            "key": ["0", "0", "3"],
            "caption_id": [0, 1, 0],
            "text": ["a red circle", "photo", "blue"],
        }
        assert [(r.key, r.error) for r in found.rejects] == [("1", "MissingCaption"), ("2", "OutOfMemory")]
        assert found.rejects[1].message == "caption 0 does not fit into the device's memory even alone"
        (expected,) = encode_language(LanguageEncoder(language_spec), chunk)
        np.testing.assert_allclose(found.embeddings, expected.embeddings[[0, 1, 3]], atol=1e-5)

    def test_a_caption_with_a_token_unknown_to_the_model_is_a_reject(
        self, tmp_path: Path, language_spec: LanguageSpec, chunk: Chunk
    ) -> None:
        path = shutil.copytree(language_spec.model, tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.add_tokens("photo_")
        tokenizer.save_pretrained(path)
        chunk.samples[0] = replace(chunk.samples[0], captions=("a red circle", "a photo_"))
        (found,) = encode_language(LanguageEncoder(language_spec.model_copy(update={"model": str(path)})), chunk)
        assert (found.columns["key"], found.embeddings.shape) == (["2", "3"], (2, 32))
        assert np.isfinite(found.embeddings).all()
        assert vars(found.rejects[1]) == {
            "key": "0",
            "stage": "encode",
            "error": "UnknownToken",
            "message": "caption 1 has the token 'photo_', for which the model has no embedding",
        }

    def test_several_captions_that_do_not_fit_make_one_reject_per_sample(
        self, language_spec: LanguageSpec, chunk: Chunk
    ) -> None:
        long = "the small green square in the large blue picture of a circle ."
        chunk.samples[0] = replace(chunk.samples[0], captions=("photo", long, f"a {long}"))
        encoder = LanguageEncoder(language_spec)
        limit_memory(encoder._model.layers[0], lambda states: states.shape[1] <= 10)
        (found,) = encode_language(encoder, chunk)
        assert (found.columns["key"], found.embeddings.shape) == (["3"], (1, 32))
        assert [(r.key, r.message.partition(" does")[0]) for r in found.rejects[1:]] == [
            ("0", "caption 1"),
            ("2", "caption 0"),
        ]
