"""Weights files of vision models are read as people have them, and give the features of the library that wrote them."""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
)

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.encoders.vision_weights import named_as
from sharelock_ray.errors import RequestError

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Tensors:
    """Those of a tiny vision transformer for images of 32 pixels, as timm names them."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32).state_dict()


def encoder(path: Path | str, model: str = "test_vit", size: int = 32, **changes: object) -> VisionEncoder:
    sizes = {"image_size": size, "resize": size}
    return VisionEncoder(support.tiny_vision(Path(path).parent, model=model, weights=str(path), **sizes, **changes))


def images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


def normalised(size: int = 32) -> torch.Tensor:
    """The images as the model of `encoder` is given them."""
    return (torch.from_numpy(images(size)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5


@pytest.fixture
def expected(weights: Tensors) -> np.ndarray:
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    model.load_state_dict(weights)
    with torch.inference_mode():
        return model.eval()(normalised()).numpy()


def under(prefix: str, weights: Tensors) -> Tensors:
    return {prefix + name: value for name, value in weights.items()}


def noise(weights: Tensors) -> Tensors:
    return {name: torch.randn_like(value) for name, value in weights.items()}


STATES: dict[str, Callable[[Tensors], object]] = {
    "lightning": lambda w: {"state_dict": under("model.backbone.", w), "epoch": 3, "callbacks": {}},
    "averaged": lambda w: {"state_dict": noise(w), "state_dict_ema": under("module.", w), "epoch": 3},
    "dino": lambda w: {
        "student": under("module.backbone.", noise(w)),
        "teacher": {**under("backbone.", w), "head.mlp.0.weight": torch.zeros(3, 3)},
        "args": argparse.Namespace(arch="vit"),
    },
    "dino, flat": lambda w: under("student.backbone.", noise(w)) | under("teacher.backbone.", w),
    "i-jepa": lambda w: {"encoder": noise(w), "target_encoder": under("module.", w), "opt": {"lr": 1.0}},
    "mae": lambda w: {"model": w | {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2, 2)}},
    "two towers": lambda w: under("visual.trunk.", w) | {"text.blocks.0.norm1.weight": torch.ones(64)},
    "nested": lambda w: {"model": {"module": under("_orig_mod.", w)}, "step": torch.tensor(7)},
}


class TestReads:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
    @pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "weights.ckpt"])
    def test_what_torch_saved(
        self, tmp_path: Path, weights: Tensors, expected: np.ndarray, name: str, zipped: bool
    ) -> None:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
        np.testing.assert_allclose(encoder(tmp_path / name).encode(images()), expected, rtol=1e-4, atol=1e-5)

    def test_a_copy_of_a_remote_file_whatever_it_is_called(self, weights: Tensors, tmp_path: Path) -> None:
        torch.save(weights, tmp_path / "weights.pth")
        storage.write_bytes("memory://pth/weights.pth", (tmp_path / "weights.pth").read_bytes())
        spec = support.tiny_vision(tmp_path, model="test_vit", weights="memory://pth/weights.pth")
        try:
            found = VisionEncoder(spec).encode(images())
        finally:
            storage.remove("memory://pth")
        np.testing.assert_array_equal(found, encoder(tmp_path / "weights.pth").encode(images()))

    @pytest.mark.parametrize("state", STATES.values(), ids=STATES)
    def test_the_model_of_a_training_state(
        self, tmp_path: Path, weights: Tensors, expected: np.ndarray, state: Callable[[Tensors], object]
    ) -> None:
        torch.save(state(weights), tmp_path / "state.pth")
        found = encoder(tmp_path / "state.pth").encode(images())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class TestNamesOf:
    """A model of random weights that the other library made, and the same weights in timm."""

    @pytest.fixture(autouse=True)
    def seeded(self) -> None:
        torch.manual_seed(0)

    @staticmethod
    def shaken(model: torch.nn.Module) -> torch.nn.Module:
        """Gives a value of its own to each norm, bias and scale, which begin alike."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    def test_hugging_face_vit(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192}
        model = self.shaken(ViTForImageClassification(ViTConfig(**sizes, image_size=32, layer_norm_eps=1e-6)))
        model.save_pretrained(tmp_path)
        with torch.inference_mode():
            tokens = model.vit(normalised()).last_hidden_state.numpy()
        found = encoder(tmp_path / "model.safetensors", pooling="cls_mean").encode(images())
        np.testing.assert_allclose(found, np.hstack([tokens[:, 0], tokens[:, 1:].mean(1)]), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("registers", [0, 4])
    @pytest.mark.parametrize("old", [True, False], ids=["the hub's", "of the classes"])
    def test_hugging_face_dinov2(self, tmp_path: Path, registers: int, old: bool) -> None:
        sizes = {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 14, "image_size": 28}
        model: torch.nn.Module = (
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))
            if registers
            else Dinov2Model(Dinov2Config(**sizes))
        )
        self.shaken(model)
        if old:
            model.save_pretrained(tmp_path)
        else:
            save_file(model.state_dict(), tmp_path / "model.safetensors")
        with torch.inference_mode():
            tokens = model(normalised(28)).last_hidden_state.numpy()
        name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
        found = encoder(tmp_path / "model.safetensors", name, 28, pooling="cls_mean").encode(images(28))
        patches = tokens[:, 1 + registers :].mean(1)
        np.testing.assert_allclose(found, np.hstack([tokens[:, 0], patches]), rtol=1e-3, atol=1e-4)

    CLIP = "vit_xsmall_patch16_clip_224"

    def test_hugging_face_clip_of_which_the_vision_tower_is_taken(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 256, "num_hidden_layers": 10, "num_attention_heads": 4, "intermediate_size": 1024}
        vision = {**sizes, "image_size": 32, "patch_size": 16, "hidden_act": "gelu"}
        model = self.shaken(CLIPModel(CLIPConfig(vision_config=vision, text_config={**sizes, "vocab_size": 99})))
        model.save_pretrained(tmp_path)
        with torch.inference_mode():
            expected = model.vision_model(normalised()).pooler_output.numpy()
        found = encoder(tmp_path / "model.safetensors", self.CLIP).encode(images())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_openai_clip_which_are_those_of_openclip(self, tmp_path: Path) -> None:
        vision = {"image_size": 32, "patch_size": 16, "width": 256, "layers": 10, "head_width": 64}
        text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 2, "layers": 10}
        model = self.shaken(open_clip.CLIP(32, vision_cfg=vision, text_cfg=text))
        torch.save({"state_dict": under("module.", model.state_dict())}, tmp_path / "clip.pt")
        # What is left when its projection is the identity is the tower.
        model.visual.proj = None
        with torch.inference_mode():
            expected = model.visual(normalised()).numpy()
        found = encoder(tmp_path / "clip.pt", self.CLIP).encode(images())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_a_gated_layer_of_hugging_face(self) -> None:
        gate, up, down = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)
        new = {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": down}
        old = {"mlp.weights_in": torch.cat([gate, up]), "mlp.weights_out": down}
        expected = {"blocks.7.mlp.fc1.weight": torch.cat([gate, up]), "blocks.7.mlp.fc2.weight": down}
        patches = {"embeddings.patch_embeddings.projection.weight": torch.ones(4, 3, 2, 2)}
        for layer in (new, old):
            names = {f"encoder.layer.7.{name}.weight": value for name, value in layer.items()}
            found = named_as([*expected], names | patches, "file")
            assert {name: value.tolist() for name, value in found.items() if name in expected} == {
                name: value.tolist() for name, value in expected.items()
            }

    def test_metas_dinov2_with_registers(self, tmp_path: Path) -> None:
        """Meta counts the class token among the positions; timm adds its position to the token."""
        whole = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=28)
        theirs = dict(self.shaken(whole).state_dict())
        place = torch.randn(1, 1, 384)
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["pos_embed"] = torch.cat([place, theirs["pos_embed"]], 1)
        theirs["cls_token"] = theirs["cls_token"] - place
        torch.save(theirs | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
        with torch.inference_mode():
            expected = whole(normalised(28)).numpy()
        found = encoder(tmp_path / "dinov2.pth", "vit_small_patch14_reg4_dinov2", 28).encode(images(28))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_metas_convnext(self, tmp_path: Path) -> None:
        model = self.shaken(timm.create_model("test_convnext", num_classes=0))
        theirs = {
            name.replace("stem.0", "downsample_layers.0.0")
            .replace("stem.1", "downsample_layers.0.1")
            .replace("head.norm", "norm")
            .replace(".blocks.", ".")
            .replace("conv_dw", "dwconv")
            .replace("mlp.fc", "pwconv"): value
            for name, value in model.state_dict().items()
        }
        assert theirs.keys() != model.state_dict().keys()
        renamed = {}
        for name, value in theirs.items():
            stage, _, rest = name.removeprefix("stages.").partition(".downsample.")
            renamed[f"downsample_layers.{stage}.{rest}" if rest else name] = value
        torch.save({"model": renamed}, tmp_path / "convnext.pth")
        with torch.inference_mode():
            expected = model(normalised()).numpy()
        found = encoder(tmp_path / "convnext.pth", "test_convnext").encode(images())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


class TestRefuses:
    def test_a_file_that_needs_code_to_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name, save in {
            "zip.pth": torch.save,
            "plain.pth": lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2)),
        }.items():
            save({"model": Code()}, tmp_path / name)
            with pytest.raises(RequestError, match=rf"{name}: .*can run code.*: convert it to safetensors$"):
                encoder(tmp_path / name)
        assert not Path("executed").exists()

    def test_a_file_without_weights(self, tmp_path: Path) -> None:
        torch.save({"model": {"epoch": 3, "args": "none"}}, tmp_path / "state.pth")
        with pytest.raises(RequestError, match=r"state\.pth holds no weights \(model\): 2 \(args, epoch\)$"):
            encoder(tmp_path / "state.pth")

    @pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
    def test_a_file_that_is_cut_off(self, tmp_path: Path, weights: Tensors, name: str) -> None:
        (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(RequestError, match=rf"cannot read the weights in .*{name}: ") as error:
            encoder(tmp_path / name)
        assert "\n" not in str(error.value)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="cannot read the weights in"):
            encoder(tmp_path)

    def test_which_of_two_models_is_meant(self, tmp_path: Path, weights: Tensors) -> None:
        save_file(under("first.", weights) | under("second.", noise(weights)), tmp_path / "two.safetensors")
        with pytest.raises(RequestError, match=r"holds 2 such models \(first\., second\.\): save the one"):
            encoder(tmp_path / "two.safetensors")

    def test_to_guess_what_is_lacking(self, tmp_path: Path, weights: Tensors) -> None:
        torch.save({"teacher": {k: v for k, v in weights.items() if "blocks.3" not in k}}, tmp_path / "state.pth")
        message = r"lacks 12 \(blocks\.3\.attn\.proj\.bias, .*, …\), and has others: 0 \(\)$"
        with pytest.raises(RequestError, match=message):
            encoder(tmp_path / "state.pth")

    def test_to_leave_out_what_the_model_has_no_place_for(self, tmp_path: Path, weights: Tensors) -> None:
        more = weights | {"reg_token": torch.zeros(1, 4, 64), "blocks.6.norm1.weight": torch.ones(64)}
        save_file(more, tmp_path / "more.safetensors")
        with pytest.raises(RequestError, match=r"lacks 0 \(\), and has others: 2 \(blocks\.6.*, reg_token\)$"):
            encoder(tmp_path / "more.safetensors")

    def test_patches_of_another_size(self, tmp_path: Path, weights: Tensors) -> None:
        other = weights | {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}
        torch.save({"model": other | {"mask_token": torch.zeros(1, 64)}}, tmp_path / "patches.pth")
        with pytest.raises(RequestError, match=r"patch_embed\.proj\.weight has the shape \(64, 3, 8, 8\) instead of"):
            encoder(tmp_path / "patches.pth")


def test_a_spec_counts_a_file_by_its_content(tmp_path: Path, weights: Tensors) -> None:
    torch.save(weights, tmp_path / "one.pth")
    (tmp_path / "two.pth").write_bytes((tmp_path / "one.pth").read_bytes())
    one, two = (VisionSpec(name="v", model="test_vit", weights=str(tmp_path / f"{n}.pth")) for n in ("one", "two"))
    assert one.folder() == two.folder()
