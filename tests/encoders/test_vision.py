"""The vision encoder gives what timm gives, whatever the batches, or says what is wrong."""

import io
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


def bare(spec: VisionSpec) -> torch.nn.Module:
    size = {"img_size": 32} if spec.model == "test_vit" else {}
    model = timm.create_model(spec.model, num_classes=0, **size)
    model.load_state_dict(load_file(spec.weights))
    return model.eval()


def prepared(data: bytes) -> torch.Tensor:
    """As torchvision prepares it for the tiny models: 32 pixels, bilinear, -1 to 1."""
    steps = [
        transforms.Resize(32, transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(32),
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


def test_bfloat16_stays_close(vision_spec: VisionSpec) -> None:
    exact = VisionEncoder(vision_spec).encode(pixels(vision_spec))
    found = VisionEncoder(vision_spec.model_copy(update={"dtype": "bfloat16"})).encode(pixels(vision_spec))
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)
    cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.995


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

    @pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
    def test_tokens_of_a_model_that_has_none(self, vision_spec: VisionSpec, pooling: str) -> None:
        with pytest.raises(RequestError, match="has no tokens"):
            VisionEncoder(vision_spec.model_copy(update={"pooling": pooling}))


def test_weights_may_lie_on_an_object_store(vision_spec: VisionSpec) -> None:
    uri = "memory://weights/model.safetensors"
    storage.write_bytes(uri, Path(vision_spec.weights).read_bytes())
    try:
        encoder = VisionEncoder(vision_spec.model_copy(update={"weights": uri}))
    finally:
        storage.remove("memory://weights")
    found = encoder.encode(pixels(vision_spec))
    np.testing.assert_allclose(found, VisionEncoder(vision_spec).encode(pixels(vision_spec)), atol=1e-6)
