"""The vision encoder gives what timm gives, whatever the batches, or says what is wrong."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

import support
from sharelock_ray import storage
from sharelock_ray.encoders.images import decode_image
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError

FILES = [support.jpeg((40 * i, 200 - 30 * i, 90), size=(40 + 7 * i, 32 + 5 * (i % 3)), seed=i) for i in range(7)]


@pytest.fixture(scope="module")
def vit(models: Path) -> VisionSpec:
    """A tiny vision transformer with a class token."""
    torch.manual_seed(0)
    path = models / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), path)
    return support.tiny_vision(models, name="tiny-vit", model="test_vit", weights=str(path))


def saved(models: Path, name: str, **settings: object) -> str:
    """The path of random weights, without a classifier unless it is asked for."""
    torch.manual_seed(0)
    path = models / f"{name}-{'-'.join(map(str, settings.values()))}.safetensors"
    save_file(timm.create_model(name, **({"num_classes": 0} | settings)).state_dict(), path)
    return str(path)


def bare(spec: VisionSpec) -> torch.nn.Module:
    size = {"img_size": 32} if spec.model == "test_vit" else {}
    model = timm.create_model(spec.model, num_classes=0, **size)
    model.load_state_dict(load_file(spec.weights))
    return model.eval()


def prepared(data: bytes, size: int = 32) -> torch.Tensor:
    """As torchvision prepares it for the tiny models: `size` pixels, bilinear, -1 to 1."""
    steps = [
        transforms.Resize(size, transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    return transforms.Compose(steps)(Image.open(io.BytesIO(data)))


def pixels(spec: VisionSpec) -> np.ndarray:
    return np.stack([decode_image(data, spec.preprocessing) for data in FILES])


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_equals_timm_on_one_image_at_a_time(kind: str, vision_spec: VisionSpec, vit: VisionSpec) -> None:
    spec = vision_spec if kind == "resnet" else vit
    model = bare(spec)
    with torch.inference_mode():
        expected = torch.cat([model(prepared(data)[None]) for data in FILES]).numpy()
    found = VisionEncoder(spec).encode(pixels(spec))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_no_embedding(batch_size: int, vision_spec: VisionSpec) -> None:
    expected = VisionEncoder(vision_spec, batch_size=7).encode(pixels(vision_spec))
    found = VisionEncoder(vision_spec, batch_size=batch_size).encode(pixels(vision_spec))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
def test_pooling_is_of_the_last_layers_tokens(pooling: str, vit: VisionSpec) -> None:
    with torch.inference_mode():
        tokens = bare(vit).forward_features(torch.stack([prepared(data) for data in FILES])).numpy()
    assert tokens.shape[1] == 5  # A class token, and 2 x 2 patches.
    cls, mean = tokens[:, 0], tokens[:, 1:].sum(1) / 4
    expected = {"cls": cls, "mean": mean, "cls_mean": np.hstack([cls, mean])}[pooling]
    encoder = VisionEncoder(vit.model_copy(update={"pooling": pooling}))
    np.testing.assert_allclose(encoder.encode(pixels(vit)), expected, rtol=1e-4, atol=1e-5)
    assert encoder.dim == expected.shape[1]


class TestLayer:
    """Hidden states between the layers, before the final norm."""

    def test_are_read_in_one_pass(self, vit: VisionSpec) -> None:
        model = bare(vit)
        images = torch.stack([prepared(data) for data in FILES])
        with torch.inference_mode():
            _, states = model.forward_intermediates(images, norm=False, output_fmt="NLC", return_prefix_tokens=True)
        layers = (1, 3, 6, -1, -6)
        specs = [vit.model_copy(update={"pooling": "cls_mean", "layer": layer}) for layer in layers]
        found = VisionEncoder(specs[0], others=specs[1:], batch_size=3).encode_each(pixels(vit)).embeddings
        for layer, embeddings in zip(layers, found, strict=True):
            patches, prefix = states[layer - 1 if layer > 0 else layer]
            expected = torch.cat([prefix[:, 0], patches.mean(1)], 1)
            np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)

    def test_0_is_the_input_of_the_first(self, vit: VisionSpec) -> None:
        found = VisionEncoder(vit.model_copy(update={"pooling": "cls", "layer": 0})).encode(pixels(vit))
        model = bare(vit)
        expected = (model.cls_token + model.pos_embed[:, :1])[0].detach().numpy()
        np.testing.assert_allclose(found, expected.repeat(len(FILES), 0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("layer", [7, -8])
    def test_that_is_not_there_is_refused(self, layer: int, vit: VisionSpec) -> None:
        with pytest.raises(RequestError, match="test_vit has 6 layers of tokens: set `layer` from -7 to 6"):
            VisionEncoder(vit.model_copy(update={"pooling": "cls", "layer": layer}))


@pytest.mark.parametrize("pooling", ["model", "cls_mean"])
def test_no_images_give_no_rows_of_the_right_width(pooling: str, vit: VisionSpec) -> None:
    encoder = VisionEncoder(vit.model_copy(update={"pooling": pooling}))
    found = encoder.encode(np.empty((0, 32, 32, 3), np.uint8))
    assert found.shape == (0, encoder.encode(pixels(vit)).shape[1])
    assert found.dtype == np.float32


def test_no_images_give_the_right_width_for_a_model_with_a_wider_head(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "mambaout.safetensors"
    save_file(timm.create_model("test_mambaout", num_classes=0).state_dict(), path)
    encoder = VisionEncoder(support.tiny_vision(models, model="test_mambaout", weights=str(path)))
    assert encoder.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, encoder.dim)


def test_compiled_it_is_the_same_model(vit: VisionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the compiler captures is run as it is: to generate code as well takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = VisionEncoder(vit, batch_size=3, compiled=True).encode(pixels(vit))
    np.testing.assert_allclose(compiled, VisionEncoder(vit).encode(pixels(vit)), atol=1e-5)


def test_bfloat16_stays_close(vision_spec: VisionSpec) -> None:
    exact = VisionEncoder(vision_spec).encode(pixels(vision_spec))
    found = VisionEncoder(vision_spec.model_copy(update={"dtype": "bfloat16"})).encode(pixels(vision_spec))
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)
    assert support.cosine_distances(found, exact).max() < 0.005


class TestPictures:
    def test_give_what_their_files_give(self, vision_spec: VisionSpec) -> None:
        encoder = VisionEncoder(vision_spec)
        images = [Image.open(io.BytesIO(data)) for data in FILES]
        np.testing.assert_allclose(encoder.encode_images(images), encoder.encode(pixels(vision_spec)), atol=1e-5)

    def test_that_are_turned_by_exif_give_what_their_files_give(self, vision_spec: VisionSpec) -> None:
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        gradient = np.linspace(0, 255, 48).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
        Image.fromarray(gradient).save(buffer, "PNG", exif=exif)
        encoder = VisionEncoder(vision_spec)
        from_file = encoder.encode(np.stack([decode_image(buffer.getvalue(), vision_spec.preprocessing)]))
        np.testing.assert_allclose(encoder.encode_images([Image.open(buffer)]), from_file, atol=1e-5)

    def test_of_which_there_are_none_give_no_rows(self, vision_spec: VisionSpec) -> None:
        encoder = VisionEncoder(vision_spec)
        assert encoder.encode_images([]).shape == (0, encoder.dim)


class TestWeights:
    # Positions that are computed; a convolutional stem; classifiers of several layers, and beside a norm that stays.
    @pytest.mark.parametrize(
        ("name", "size"),
        [("xcit_nano_12_p16_224", 32), ("vit_tiny_r_s16_p8_224", 64), ("levit_128s", 224), ("test_convnext", 32)],
    )
    def test_of_any_family_are_its_own(self, models: Path, name: str, size: int) -> None:
        settings = {"img_size": size} if name.startswith("vit") else {}
        path = saved(models, name, num_classes=10, **settings)
        whole = timm.create_model(name, num_classes=10, **settings)
        whole.load_state_dict(load_file(path))
        whole.reset_classifier(0)
        with torch.inference_mode():
            expected = whole.eval()(torch.stack([prepared(data, size) for data in FILES[:2]])).numpy()
        spec = support.tiny_vision(models, model=name, weights=path, image_size=size, resize=size)
        found = VisionEncoder(spec).encode(np.stack([decode_image(d, spec.preprocessing) for d in FILES[:2]]))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
    def test_are_known_by_the_names_that_training_gave_them(
        self, tmp_path: Path, vision_spec: VisionSpec, prefix: str
    ) -> None:
        path = tmp_path / "weights.safetensors"
        save_file({f"{prefix}{name}": value for name, value in load_file(vision_spec.weights).items()}, path)
        found = VisionEncoder(vision_spec.model_copy(update={"weights": str(path)})).encode(pixels(vision_spec))
        np.testing.assert_array_equal(found, VisionEncoder(vision_spec).encode(pixels(vision_spec)))

    def test_that_are_lacking_are_named(self, tmp_path: Path, vision_spec: VisionSpec) -> None:
        path = tmp_path / "weights.safetensors"
        weights = load_file(vision_spec.weights)
        weights["net.bn1.weight"] = weights.pop("bn1.weight")
        save_file(weights, path)
        message = r"does not hold weights of test_resnet: it lacks 1 .bn1.weight., and has others: 1 .net.bn1.weight.$"
        with pytest.raises(RequestError, match=message):
            VisionEncoder(vision_spec.model_copy(update={"weights": str(path)}))


class TestRefuses:
    def test_a_model_that_timm_does_not_know(self, vision_spec: VisionSpec) -> None:
        with pytest.raises(RequestError, match="timm knows no model 'resnet_of_dreams'"):
            VisionEncoder(vision_spec.model_copy(update={"model": "resnet_of_dreams"}))

    def test_weights_of_another_model(self, vision_spec: VisionSpec, vit: VisionSpec) -> None:
        with pytest.raises(RequestError, match="does not hold weights of test_resnet") as error:
            VisionEncoder(vision_spec.model_copy(update={"weights": vit.weights}))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [None, b"", b"no tensors"], ids=["missing", "empty", "garbage"])
    def test_weights_that_are_no_weights(self, tmp_path: Path, vision_spec: VisionSpec, content: bytes | None) -> None:
        path = tmp_path / "weights.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RequestError, match=r"weights\.safetensors"):
            VisionEncoder(vision_spec.model_copy(update={"weights": str(path)}))

    def test_images_of_a_size_that_the_model_cannot_see(self, models: Path) -> None:
        spec = support.tiny_vision(models, model="bat_resnext26ts", weights=saved(models, "bat_resnext26ts"))
        with pytest.raises(RequestError, match="cannot load 'bat_resnext26ts' for images of 32 pixels"):
            VisionEncoder(spec)

    @pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
    def test_tokens_of_a_model_that_has_none(self, vision_spec: VisionSpec, pooling: str) -> None:
        with pytest.raises(RequestError, match="has no tokens"):
            VisionEncoder(vision_spec.model_copy(update={"pooling": pooling}))

    def test_a_class_token_of_a_model_that_has_registers_alone(self, models: Path) -> None:
        path = saved(models, "test_vit2", img_size=32)
        with pytest.raises(RequestError, match="has no class token for pooling 'cls': use `pooling: mean`"):
            VisionEncoder(support.tiny_vision(models, model="test_vit2", weights=path, pooling="cls"))

    @pytest.mark.parametrize(
        ("model", "pooling"), [("test_resnet", "model"), ("test_vit2", "mean"), ("test_mambaout", "model")]
    )
    def test_to_leave_out_a_norm_that_is_not_there(self, models: Path, model: str, pooling: str) -> None:
        spec = support.tiny_vision(models, model=model, weights=saved(models, model), pooling=pooling, final_norm=False)
        with pytest.raises(RequestError, match=f"{model} has no final norm for pooling '{pooling}'"):
            VisionEncoder(spec)

    def test_the_hubs_positions_of_a_model_without_positions(self, vision_spec: VisionSpec) -> None:
        with pytest.raises(RequestError, match="test_resnet does not resample position embeddings"):
            VisionEncoder(vision_spec.model_copy(update={"position_interpolation": "dinov2-hub"}))


def test_weights_may_lie_on_an_object_store(vision_spec: VisionSpec) -> None:
    uri = "memory://weights/model.safetensors"
    storage.write_bytes(uri, Path(vision_spec.weights).read_bytes())
    try:
        encoder = VisionEncoder(vision_spec.model_copy(update={"weights": uri}))
    finally:
        storage.remove("memory://weights")
    found = encoder.encode(pixels(vision_spec))
    np.testing.assert_allclose(found, VisionEncoder(vision_spec).encode(pixels(vision_spec)), atol=1e-6)


class TestFinalNorm:
    """Left out, what is pooled is what the model's last norm is given."""

    @pytest.mark.parametrize("pooling", ["model", "cls", "mean", "cls_mean"])
    def test_of_the_tokens(self, pooling: str, vit: VisionSpec) -> None:
        model = bare(vit)
        model.norm = torch.nn.Identity()
        with torch.inference_mode():
            tokens = model.forward_features(torch.stack([prepared(data) for data in FILES])).numpy()
        cls, mean = tokens[:, 0], tokens[:, 1:].mean(1)
        expected = {"model": cls, "cls": cls, "mean": mean, "cls_mean": np.hstack([cls, mean])}[pooling]
        spec = vit.model_copy(update={"pooling": pooling, "final_norm": False})
        np.testing.assert_allclose(VisionEncoder(spec).encode(pixels(vit)), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("model", "norm"), [("test_convnext", "head.norm"), ("test_vit2", "fc_norm")])
    def test_of_what_the_head_has_pooled(self, model: str, norm: str, models: Path) -> None:
        size = {"img_size": 32} if model == "test_vit2" else {}
        spec = support.tiny_vision(models, model=model, weights=saved(models, model, **size))
        without = timm.create_model(model, num_classes=0, **size)
        without.load_state_dict(load_file(spec.weights))
        without.set_submodule(norm, torch.nn.Identity())
        with torch.inference_mode():
            expected = without.eval()(torch.stack([prepared(data) for data in FILES])).numpy()
        encoder = VisionEncoder(spec, others=[spec.model_copy(update={"final_norm": False})])
        normed, raw = encoder.encode_each(pixels(spec)).embeddings
        np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(normed, VisionEncoder(spec).encode(pixels(spec)), rtol=1e-4, atol=1e-5)
        assert not np.allclose(normed, raw, atol=0.01)


def test_encoders_that_share_a_forward_pass_give_what_each_gives_alone(vit: VisionSpec) -> None:
    changes = [{"pooling": p, "final_norm": n} for p in ("model", "cls", "mean", "cls_mean") for n in (True, False)]
    specs = [vit.model_copy(update=change) for change in changes]
    encoder = VisionEncoder(specs[0], others=specs[1:], batch_size=3)
    for spec, found in zip(specs, encoder.encode_each(pixels(vit)).embeddings, strict=True):
        np.testing.assert_allclose(found, VisionEncoder(spec).encode(pixels(vit)), rtol=1e-4, atol=1e-5)


def test_channels_last_changes_no_embedding(vision_spec: VisionSpec) -> None:
    found = VisionEncoder(vision_spec, channels_last=True).encode(pixels(vision_spec))
    np.testing.assert_allclose(found, VisionEncoder(vision_spec).encode(pixels(vision_spec)), rtol=1e-4, atol=1e-5)


class TestImageSize:
    """Weights of one size serve images of another, by their position embeddings."""

    def test_of_local_weights_is_resampled_as_timm_does(self, models: Path) -> None:
        path = saved(models, "test_vit", img_size=160)
        model = timm.create_model("test_vit", num_classes=0, img_size=160)
        model.load_state_dict(load_file(path))
        model.set_input_size(img_size=32)
        spec = support.tiny_vision(models, model="test_vit", weights=path)
        with torch.inference_mode():
            expected = model.eval()(torch.stack([prepared(data) for data in FILES])).numpy()
        np.testing.assert_allclose(VisionEncoder(spec).encode(pixels(spec)), expected, rtol=1e-4, atol=1e-5)

    def test_needs_no_weights_without_a_classifier(self, models: Path) -> None:
        path = saved(models, "test_vit", num_classes=10)
        spec = support.tiny_vision(models, model="test_vit", weights=path)
        assert VisionEncoder(spec).encode(pixels(spec)).shape == (7, 64)

    @pytest.mark.parametrize("registers", [False, True])
    def test_of_dinov2_is_resampled_as_its_own_hub_does(self, models: Path, registers: bool) -> None:
        """DINOv2-S of random weights, 518 pixels (37 patches to a side), to the 224 (16 patches) of the paper."""
        name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
        path = saved(models, name)
        # As they begin, the layers hardly change what they are given: positions would not matter to the class token.
        state = {key: torch.ones_like(v) if key.endswith("gamma") else v for key, v in load_file(path).items()}
        state["pos_embed"] *= 10
        save_file(state, path)
        prefix = 0 if registers else 1
        assert state["pos_embed"].shape[1] == 37 * 37 + prefix
        oracle = timm.create_model(name, num_classes=0, img_size=224).eval()
        grid = state["pos_embed"][0, prefix:].double().reshape(37, 37, -1)
        rows = torch.from_numpy(antialiased(37, 16) if registers else scaled(37, 16, 16.1 / 37))
        moved = torch.einsum("ia,jb,abd->ijd", rows, rows, grid).flatten(0, 1).float()
        state["pos_embed"] = torch.cat([state["pos_embed"][0, :prefix], moved])[None]
        oracle.load_state_dict(state)

        spec = VisionSpec(preset=f"sharelock-dinov2-s{'-reg' if registers else ''}", weights=path)
        images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        inputs = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
        with torch.inference_mode():
            expected = oracle.forward_features(inputs)[:, 0].numpy()
        found = VisionEncoder(spec).encode(images)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        timms = VisionEncoder(spec.model_copy(update={"position_interpolation": "timm"})).encode(images)
        # With registers the two are one; without, they differ a little, as they should.
        assert np.allclose(timms, expected, rtol=1e-3, atol=1e-4) == registers


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981); torch's `a` is -0.75, and -0.5 where it antialiases."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def scaled(old: int, new: int, factor: float) -> np.ndarray:
    """(new, old) weights of a resampling by `factor` without antialiasing; the border is repeated."""
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) / factor - 0.5
        for neighbour in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[i, min(max(neighbour, 0), old - 1)] += cubic(np.array(place - neighbour), -0.75)
    return weights


def antialiased(old: int, new: int) -> np.ndarray:
    """(new, old) weights of a downsampling whose kernel is as wide as the new pixels."""
    step = old / new
    centres, pixels_ = (np.arange(new) + 0.5) * step, np.arange(old) + 0.5
    weights = cubic((pixels_[None] - centres[:, None]) / step, -0.5)
    return weights / weights.sum(1, keepdims=True)
