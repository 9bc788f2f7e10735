"""Real pictures that are cropped, compressed or mirrored are found among others by DINOv2-S, and few others are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import support
from sharelock_ray.concepts.twins import Pictures, duplicate_images
from sharelock_ray.demo import dinov2
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.sources.webdataset import WebDatasetSource

PICTURES = Path(__file__).parents[2] / "data" / "pictures"
SPEC = VisionSpec(
    name="dinov2-s", model=dinov2.MODEL, weights=str(PICTURES / "dinov2-s.safetensors"), pooling="cls", image_size=224
)
PLANTED = 60
"""Pictures that are planted in each way, of twice as many in the training."""
INNOCENT = 60
"""Pictures of the test that the training does not have."""
ALARMS = 15
"""Neighbours in the list of one collection: some differ by a colour or a number."""

pytestmark = [
    pytest.mark.real(),
    pytest.mark.skipif(
        not (PICTURES / "dinov2-s.safetensors").exists(), reason="needs data/pictures: `make pictures` makes it"
    ),
]


def cropped(image: Image.Image) -> Image.Image:
    """A tenth of the width and of the height is cut off on each side."""
    width, height = image.size
    return image.crop((round(0.1 * width), round(0.1 * height), round(0.9 * width), round(0.9 * height)))


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def written(folder: Path, keys: list[str], embeddings: np.ndarray) -> Pictures:
    chunk = EncodedChunk({"key": keys, "label": [None] * len(keys)}, embeddings)
    return Pictures(open_features(support.write_parts(str(folder), SPEC, [[chunk]])), ())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Keys of the images of a test that have a twin in a training: `crop/…`, `jpeg/…`, `flip/…`, or `other/…`."""
    source = WebDatasetSource(urls=str(PICTURES / "test" / "*.tar"))
    samples = [sample for shard in source.shards() for sample in source.read(shard)]
    wanted = 2 * PLANTED + INNOCENT
    samples = samples[:: len(samples) // wanted][:wanted]
    images = [upright_image(sample.image, sample.key) for sample in samples]
    training, others = [*images[::3], *images[1::3]], images[2::3]
    encoder = VisionEncoder(SPEC)
    ways = {"crop": cropped, "jpeg": compressed, "flip": ImageOps.mirror}
    test = {
        f"{way}/{i:02d}": change(image) for way, change in ways.items() for i, image in enumerate(training[:PLANTED])
    }
    test |= {f"other/{i:02d}": image for i, image in enumerate(others)}
    folder = tmp_path_factory.mktemp("twins")
    seen = written(folder / "seen", [f"{i:03d}" for i in range(len(training))], encoder.encode_images(training))
    unseen = written(folder / "unseen", list(test), encoder.encode_images(list(test.values())))
    made = duplicate_images(unseen, unseen.rows(()), seen, seen.rows(()))
    return {twin.key for twin in made.images}


@pytest.mark.parametrize("way", ["crop", "jpeg", "flip"])
def test_planted_twins_are_found(way: str, found: set[str]) -> None:
    assert [key for key in (f"{way}/{i:02d}" for i in range(PLANTED)) if key not in found] == []


def test_few_other_pictures_are_taken_for_twins(found: set[str]) -> None:
    assert len([key for key in found if key.startswith("other/")]) <= ALARMS
