"""A model of OpenCLIP gives what OpenCLIP gives: its own transform, its own image embeddings."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from sharelock_ray import storage
from sharelock_ray.encoders.images import crop_image
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError
from support import photographs

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "CoCa's ViT": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4},
    "ResNet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "timm's ViT": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
    "timm's ConvNeXt": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}


def config_of(tower: str) -> dict[str, Any]:
    custom = {"custom_text": True} if "timm" in tower else {}
    return {"embed_dim": 24, "vision_cfg": TOWERS[tower], "text_cfg": TEXT, **custom}


def built(tower: str) -> Any:
    torch.manual_seed(0)
    config = config_of(tower)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**config)
    with torch.no_grad():
        # Norms and biases begin alike, which would hide one that is left out.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of each kind of tower, as OpenCLIP publishes them."""
    folders = {}
    for tower in TOWERS:
        folder = tmp_path_factory.mktemp("models") / tower
        folder.mkdir()
        torch.save(built(tower).state_dict(), folder / "open_clip_pytorch_model.bin")
        write_config(folder, tower, {"interpolation": "bicubic", "resize_mode": "shortest"})
        folders[tower] = str(folder)
    return folders


def write_config(folder: Path, tower: str, preprocessing: dict[str, Any]) -> None:
    content = {"model_cfg": config_of(tower), "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def encoder(model: str, **settings: Any) -> VisionEncoder:
    return VisionEncoder(VisionSpec(name="v", backend="open_clip", model=model, **settings))


def prepared(folder: str, **changes: Any) -> torch.Tensor:
    """The photographs as OpenCLIP's own evaluation transform gives them."""
    transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **changes)[2]
    return torch.stack([transform(image) for image in photographs()])


class TestEqualsOpenclip:
    @pytest.mark.parametrize("tower", TOWERS)
    def test_at_the_embedding_it_shares_with_texts(self, tower: str, folders: dict[str, str]) -> None:
        with torch.inference_mode():
            expected = built(tower).encode_image(prepared(folders[tower])).numpy()
        found = encoder(folders[tower]).encode_images(photographs())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("normed", [True, False])
    def test_at_the_tokens_with_and_without_the_final_norm(self, normed: bool, folders: dict[str, str]) -> None:
        with torch.inference_mode():
            output = built("ViT").visual.forward_intermediates(
                prepared(folders["ViT"]), 1, normalize_intermediates=normed, output_fmt="NLC", output_extra_tokens=True
            )
        cls, patches = output["image_intermediates_prefix"][0][:, 0], output["image_intermediates"][0]
        assert patches.shape == (3, 4, 64)
        found = encoder(folders["ViT"], pooling="cls_mean", final_norm=normed).encode_images(photographs())
        np.testing.assert_allclose(found, torch.cat([cls, patches.mean(1)], 1), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("tower", ["ViT", "CoCa's ViT"])
    def test_between_the_layers_in_one_pass(self, tower: str, folders: dict[str, str]) -> None:
        with torch.inference_mode():
            states = built(tower).visual.forward_intermediates(prepared(folders[tower]), output_fmt="NLC")
        layers = (1, 2, 3, -1, -2)
        specs = [
            VisionSpec(name="v", backend="open_clip", model=folders[tower], pooling="mean", layer=layer)
            for layer in layers
        ]
        found = VisionEncoder(specs[0], others=specs[1:])
        pixels = np.stack([crop_image(image, found.spec.preprocessing) for image in photographs()])
        for layer, embeddings in zip(layers, found.encode_each(pixels).embeddings, strict=True):
            expected = states["image_intermediates"][layer - 1 if layer > 0 else layer].mean(1)
            np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)

    def test_of_a_tower_of_timm_at_its_tokens(self, folders: dict[str, str]) -> None:
        with torch.inference_mode():
            tokens = built("timm's ViT").visual.trunk.forward_features(prepared(folders["timm's ViT"]))
        found = encoder(folders["timm's ViT"], pooling="cls").encode_images(photographs())
        np.testing.assert_allclose(found, tokens[:, 0], rtol=1e-4, atol=1e-5)

    def test_for_images_of_another_size(self, folders: dict[str, str]) -> None:
        model = open_clip.create_model(f"local-dir:{folders['ViT']}", force_image_size=48).eval()
        with torch.inference_mode():
            expected = model.encode_image(prepared(folders["ViT"], force_image_size=48)).numpy()
        found = encoder(folders["ViT"], image_size=48).encode_images(photographs())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class TestPreprocessing:
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
    @pytest.mark.parametrize("mode", ["shortest", "squash"])
    def test_is_the_librarys(self, interpolation: str, mode: str, folders: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "open_clip_pytorch_model.bin").symlink_to(Path(folders["ViT"]) / "open_clip_pytorch_model.bin")
        own = {"interpolation": interpolation, "resize_mode": mode, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
        write_config(tmp_path, "ViT", own)
        spec = VisionSpec(name="v", backend="open_clip", model=str(tmp_path)).resolved()
        expected = prepared(str(tmp_path)).permute(0, 2, 3, 1) * torch.tensor(spec.std) + torch.tensor(spec.mean)
        for image, theirs in zip(photographs(), expected, strict=True):
            np.testing.assert_allclose(crop_image(image, spec.preprocessing), 255 * theirs, atol=0.01)

    def test_of_a_built_in_model_needs_no_weights(self) -> None:
        spec = VisionSpec(name="v", backend="open_clip", model="ViT-B-16-SigLIP2-256", weights="webli").resolved()
        assert (spec.image_size, spec.resize, spec.crop_mode) == (256, 256, "squash")
        assert spec.mean == spec.std == (0.5, 0.5, 0.5)
        assert spec.hub_id == "timm/ViT-B-16-SigLIP2-256"

    def test_that_pads_is_refused(self, tmp_path: Path) -> None:
        write_config(tmp_path, "ViT", {"resize_mode": "longest"})
        with pytest.raises(RequestError, match=r"resize mode 'longest' of .* is not supported: set `crop_mode`"):
            VisionSpec(name="v", backend="open_clip", model=str(tmp_path)).resolved()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a model that OpenCLIP is told of."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "ViT-tiny.json").write_text(json.dumps(config_of("ViT")))
    open_clip.add_model_config(folder)
    return "ViT-tiny"


class TestWeightsInAFile:
    @pytest.mark.parametrize("kind", ["weights.pt", "weights.safetensors", "memory://open_clip/weights"])
    def test_are_the_same_model(self, kind: str, model: str, folders: dict[str, str], tmp_path: Path) -> None:
        state, path = built("ViT").state_dict(), tmp_path / "weights"
        (torch.save if kind.endswith(".pt") else save_file)(state, path)
        place = kind if "://" in kind else str(tmp_path / kind)
        storage.write_bytes(place, path.read_bytes())
        try:
            found = encoder(model, weights=place).encode_images(photographs())
        finally:
            storage.remove(place)
        np.testing.assert_array_equal(found, encoder(folders["ViT"]).encode_images(photographs()))

    def test_that_are_missing_are_named(self, model: str, tmp_path: Path) -> None:
        state = built("ViT").state_dict()
        del state["visual.ln_post.weight"]
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(RequestError, match=r'Missing key\(s\) in state_dict: "visual\.ln_post\.weight"') as error:
            encoder(model, weights=str(tmp_path / "weights.pt"))
        assert "\n" not in str(error.value)


class TestRefuses:
    def test_a_model_that_openclip_does_not_know(self) -> None:
        with pytest.raises(RequestError, match="open_clip knows no model 'ViT-of-dreams'"):
            encoder("ViT-of-dreams", weights="openai")

    @pytest.mark.parametrize("weights", ["pretrained", "laion3b"])
    def test_a_tag_that_openclip_does_not_know(self, weights: str) -> None:
        with pytest.raises(RequestError, match=rf"no weights '{weights}' of ViT-B-32: set `weights` \(openai, "):
            encoder("ViT-B-32", weights=weights)

    def test_weights_of_another_activation(self) -> None:
        with pytest.raises(RequestError, match="have another activation: set `model: ViT-B-32-quickgelu`"):
            encoder("ViT-B-32", weights="openai")

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"cannot load .*open_clip_config\.json") as error:
            encoder(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_a_folder_without_weights(self, tmp_path: Path) -> None:
        write_config(tmp_path, "ViT", {})
        with pytest.raises(RequestError, match="cannot load"):
            encoder(str(tmp_path))

    @pytest.mark.parametrize("tower", ["ResNet", "timm's ConvNeXt"])
    def test_tokens_of_a_map(self, tower: str, folders: dict[str, str]) -> None:
        with pytest.raises(RequestError, match="has no tokens for pooling 'mean'"):
            encoder(folders[tower], pooling="mean")

    def test_to_run_without_the_package(self, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "sharelock_ray.encoders.vision_open_clip", raising=False)
        monkeypatch.setitem(sys.modules, "open_clip", None)
        with pytest.raises(
            RequestError, match=r"needs the package open_clip: pip install 'sharelock-ray\[open_clip\]'"
        ):
            encoder(folders["ViT"])
