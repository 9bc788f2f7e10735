"""A vision model of transformers gives what transformers gives, from its own processor to its own outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from sharelock_ray import storage
from sharelock_ray.encoders.images import crop_image
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError
from support import photographs

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}
WIDER = {**SIZES, "intermediate_size": 64}
SQUARE = {"height": 32, "width": 32}


def clip() -> transformers.CLIPModel:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=WIDER, text_config=text))


def siglip() -> transformers.SiglipModel:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=WIDER, text_config=text))


# A model of each kind, its processor, and the number of its tokens before those of the patches.
KINDS: dict[str, tuple[Callable[[], Any], Any, int]] = {
    "ViT": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**WIDER)),
        transformers.ViTImageProcessor(size=SQUARE),
        1,
    ),
    "DINOv2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
        transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE),
        1,
    ),
    "DINOv2 with registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
        ),
        transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE),
        5,
    ),
    "DINOv3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**WIDER, num_register_tokens=4)),
        transformers.DINOv3ViTImageProcessor(size=SQUARE),
        5,
    ),
    "CLIP": (clip, transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE), 1),
    "SigLIP": (siglip, transformers.SiglipImageProcessor(size=SQUARE), 0),
    "I-JEPA": (
        lambda: transformers.IJepaModel(transformers.IJepaConfig(**WIDER)),
        transformers.ViTImageProcessor(size=SQUARE),
        0,
    ),
    "MAE": (
        lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**WIDER)),
        transformers.ViTImageProcessor(size=SQUARE),
        1,
    ),
    "DeiT": (
        lambda: transformers.DeiTModel(transformers.DeiTConfig(**WIDER)),
        transformers.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=SQUARE),
        2,
    ),
    "ConvNeXt": (
        lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
        transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
        0,
    ),
}
WITH_CLS = [kind for kind in KINDS if kind not in ("SigLIP", "I-JEPA", "ConvNeXt")]
WITH_TOKENS = [*WITH_CLS, "SigLIP", "I-JEPA"]
WITH_POOLING = [kind for kind in KINDS if kind not in ("I-JEPA", "MAE")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of each kind of model, as `save_pretrained` writes it."""
    folders = {}
    for kind, (build, processor, _) in KINDS.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / kind
        model = build()
        with torch.no_grad():
            # Norms, biases and tokens begin alike, which would hide one that is left out.
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


def encoder(folder: str, **settings: Any) -> VisionEncoder:
    return VisionEncoder(VisionSpec(name="v", backend="transformers", model=folder, **settings))


def reference(folder: str, **options: Any) -> Any:
    """The outputs of the library's own classes for the photographs."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in photographs()])
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    if "noise" in options:
        model.config.mask_ratio = 0.0
    with torch.inference_mode():
        return model(pixel_values=pixels, output_hidden_states=True, **options)


def options(kind: str) -> dict[str, torch.Tensor]:
    # Any noise keeps all patches; their order does not matter to a pooling.
    return {"noise": torch.rand(3, 4)} if kind == "MAE" else {}


def assert_equal(found: np.ndarray, expected: torch.Tensor, kind: str) -> None:
    # DINOv3 has no processor of Pillow: torch resizes its images, by other rounding.
    tolerance = 0.05 if kind == "DINOv3" else 1e-4
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=tolerance)


class TestEqualsTransformers:
    @pytest.mark.parametrize("kind", WITH_CLS)
    def test_at_the_class_token_and_the_patches(self, kind: str, folders: dict[str, str]) -> None:
        tokens, prefix = reference(folders[kind], **options(kind)).last_hidden_state, KINDS[kind][2]
        if kind == "CLIP":
            # CLIP's norm is only in its pooling.
            with torch.inference_mode():
                tokens = AutoModel.from_pretrained(folders[kind]).vision_model.post_layernorm(tokens)
        expected = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1)
        assert tokens.shape[1] == prefix + 4
        assert_equal(encoder(folders[kind], pooling="cls_mean").encode_images(photographs()), expected, kind)

    @pytest.mark.parametrize("kind", ["SigLIP", "I-JEPA"])
    def test_at_the_patches_where_there_is_no_class_token(self, kind: str, folders: dict[str, str]) -> None:
        expected = reference(folders[kind]).last_hidden_state.mean(1)
        assert_equal(encoder(folders[kind], pooling="mean").encode_images(photographs()), expected, kind)

    @pytest.mark.parametrize("kind", WITH_POOLING)
    def test_at_the_models_own_output(self, kind: str, folders: dict[str, str]) -> None:
        assert_equal(encoder(folders[kind]).encode_images(photographs()), reference(folders[kind]).pooler_output, kind)

    @pytest.mark.parametrize("kind", WITH_TOKENS)
    def test_between_the_layers_in_one_pass(self, kind: str, folders: dict[str, str]) -> None:
        states, prefix = reference(folders[kind], **options(kind)).hidden_states, KINDS[kind][2]
        specs = [
            VisionSpec(name="v", backend="transformers", model=folders[kind], pooling="mean", layer=layer)
            for layer in (0, 1, 2, 3, -1, -4)
        ]
        found = VisionEncoder(specs[0], others=specs[1:])
        pixels = found.encode_each(pixels_of(found)).embeddings
        for spec, embeddings in zip(specs, pixels, strict=True):
            assert_equal(embeddings, states[spec.layer][:, prefix:].mean(1), kind)

    @pytest.mark.parametrize("kind", WITH_TOKENS)
    def test_before_the_final_norm(self, kind: str, folders: dict[str, str]) -> None:
        expected = reference(folders[kind], **options(kind)).hidden_states[-1][:, KINDS[kind][2] :].mean(1)
        found = encoder(folders[kind], pooling="mean", final_norm=False).encode_images(photographs())
        assert_equal(found, expected, kind)

    def test_for_images_of_another_size(self, folders: dict[str, str]) -> None:
        found = encoder(folders["ViT"], image_size=48, pooling="cls")
        assert (found.spec.image_size, found.spec.resize) == (48, 48)
        pixels = torch.from_numpy(pixels_of(found)).permute(0, 3, 1, 2) / 255 * 2 - 1
        model = AutoModel.from_pretrained(folders["ViT"]).eval()
        with torch.inference_mode():
            expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        assert_equal(found.encode_images(photographs()), expected, "ViT")

    def test_masked_autoencoders_mask_nothing(self, folders: dict[str, str]) -> None:
        found = encoder(folders["MAE"], pooling="cls_mean")
        np.testing.assert_array_equal(found.encode_images(photographs()), found.encode_images(photographs()))

    def test_a_compiled_model_is_the_same(self, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        compiled = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="eager"))
        spec = VisionSpec(name="v", backend="transformers", model=folders["DINOv2"], pooling="cls")
        others = [spec.model_copy(update=change) for change in ({"layer": 2}, {"layer": 0}, {"final_norm": False})]
        plain, fast = (VisionEncoder(spec, others=others, compiled=each) for each in (False, True))
        pixels = pixels_of(plain)
        for one, two in zip(plain.encode_each(pixels).embeddings, fast.encode_each(pixels).embeddings, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def pixels_of(encoder: VisionEncoder) -> np.ndarray:
    return np.stack([crop_image(image, encoder.spec.preprocessing) for image in photographs()])


class TestPreprocessing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_the_processors(self, kind: str, folders: dict[str, str]) -> None:
        found = encoder(folders[kind], pooling="mean" if kind in ("I-JEPA", "MAE") else "model")
        mean, std = np.array(found.spec.mean), np.array(found.spec.std)
        theirs = AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
        exact = type(theirs).__name__.endswith("Pil")
        for ours, image in zip(pixels_of(found), photographs(), strict=True):
            expected = theirs(images=image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * std + mean
            assert np.abs(ours - 255 * expected).max() < (0.01 if exact else 2.5)

    def test_is_written_into_the_spec(self, folders: dict[str, str]) -> None:
        spec = VisionSpec(name="v", backend="transformers", model=folders["DINOv2"]).resolved()
        assert spec.preprocessing.model_dump(exclude={"reduced_scale"}) == {
            "image_size": 32,
            "resize": 37,
            "interpolation": "bicubic",
            "crop_mode": "center_floor",
        }
        assert spec.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
        assert (
            VisionSpec(name="v", backend="transformers", model=folders["DINOv2"], image_size=64).resolved().resize == 74
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"do_pad": True, "image_processor_type": "BridgeTowerImageProcessor", "size": {"shortest_edge": 32}},
            {"do_center_crop": False},
            {"do_resize": False},
            {"do_rescale": False},
        ],
        ids=str,
    )
    def test_that_is_more_than_resize_and_crop_is_refused(
        self, change: dict[str, Any], folders: dict[str, str], tmp_path: Path
    ) -> None:
        content = json.loads((Path(folders["CLIP"]) / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | change))
        with pytest.raises(RequestError, match="does more than resize, crop and normalise: set `image_size`, `resize`"):
            VisionSpec(name="v", backend="transformers", model=str(tmp_path)).resolved()

    def test_that_is_given_in_full_needs_no_processor(self, folders: dict[str, str], tmp_path: Path) -> None:
        for file in Path(folders["ViT"]).iterdir():
            if "processor" not in file.name:
                (tmp_path / file.name).write_bytes(file.read_bytes())
        with pytest.raises(RequestError, match="cannot load the image processor of"):
            encoder(str(tmp_path))
        steps = {"image_size": 32, "resize": 32, "crop_mode": "squash", "interpolation": "bilinear"}
        found = encoder(str(tmp_path), **steps, mean=(0.5,) * 3, std=(0.5,) * 3)
        np.testing.assert_array_equal(
            found.encode_images(photographs()), encoder(folders["ViT"]).encode_images(photographs())
        )


class TestRefuses:
    @pytest.mark.parametrize("kind", ["SigLIP", "I-JEPA"])
    def test_a_class_token_where_there_is_none(self, kind: str, folders: dict[str, str]) -> None:
        with pytest.raises(RequestError, match="has no class token for pooling 'cls': use `pooling: mean`"):
            encoder(folders[kind], pooling="cls")

    @pytest.mark.parametrize("kind", ["I-JEPA", "MAE"])
    def test_an_output_of_its_own_where_there_is_none(self, kind: str, folders: dict[str, str]) -> None:
        with pytest.raises(RequestError, match="has no pooled output of its own: set another `pooling`"):
            encoder(folders[kind])

    def test_tokens_of_a_map(self, folders: dict[str, str]) -> None:
        with pytest.raises(RequestError, match="has no tokens for pooling 'mean': use `pooling: model`"):
            encoder(folders["ConvNeXt"], pooling="mean")

    @pytest.mark.parametrize("layer", [4, -5])
    def test_a_layer_that_is_not_there(self, layer: int, folders: dict[str, str]) -> None:
        with pytest.raises(RequestError, match="has 3 layers of tokens: set `layer` from -4 to 3"):
            encoder(folders["ViT"], pooling="cls", layer=layer)

    def test_weights_that_are_missing_where_they_are_read(self, folders: dict[str, str], tmp_path: Path) -> None:
        for file in Path(folders["ViT"]).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = load_file(tmp_path / "model.safetensors")
        save_file(
            {name: value for name, value in weights.items() if not name.startswith("pooler")},
            tmp_path / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(RequestError, match=r"is incomplete: weights are missing .*: 2 \(pooler\.dense\.bias"):
            encoder(str(tmp_path))
        assert encoder(str(tmp_path), pooling="cls").dim == 32

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        steps = {"image_size": 32, "resize": 32, "crop_mode": "squash", "interpolation": "bilinear"}
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(RequestError, match="cannot load") as error:
            encoder(str(tmp_path), **steps, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert "\n" not in str(error.value)


def test_a_folder_may_lie_on_an_object_store(folders: dict[str, str]) -> None:
    for file in Path(folders["DINOv2"]).iterdir():
        storage.write_bytes(f"memory://dinov2/{file.name}", file.read_bytes())
    try:
        found = encoder("memory://dinov2", pooling="cls").encode_images(photographs())
    finally:
        storage.remove("memory://dinov2")
    np.testing.assert_array_equal(found, encoder(folders["DINOv2"], pooling="cls").encode_images(photographs()))
