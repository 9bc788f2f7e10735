"""Boxes of images: each is an image of its own, with the pixels of the image, or a reject."""

import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from sharelock_ray.evaluation.boxes import BoxImages, boxed
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.sample import Reject, Sample

PIXELS = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)


def source_of(folder: Path) -> ClassFolderSource:
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(PIXELS).save(folder / "images" / name)
    (folder / "images" / "broken.png").write_bytes(b"no image")
    (folder / "images" / "notes.txt").write_text("text")
    return ClassFolderSource(path=str(folder))


def read(source: BoxImages) -> list[Sample | Reject]:
    """The items as a worker reads them."""
    sent = pickle.loads(pickle.dumps(source))
    found = [item for shard in source.shards() for item in sent.read(shard)]
    assert [item.key for item in found] == [key for shard in source.shards() for key in source.keys_of(shard)]
    return found


def test_boxes_have_the_pixels_of_the_image_and_images_without_one_are_left_out(tmp_path: Path) -> None:
    boxes = [boxed("images/a.png", box) for box in [(3, 5, 20, 10), (0, 0, 40, 30), (3, 5, 20, 10)]]
    found = read(BoxImages(source_of(tmp_path), tuple(boxes)))
    assert [item.key for item in found] == ["images/a.png@3,5,20,10", "images/a.png@0,0,40,30"]
    for item, expected in zip(found, [PIXELS[5:15, 3:23], PIXELS], strict=True):
        assert isinstance(item, Sample)
        assert item.image is not None
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(item.image))), expected)


def test_a_box_that_cannot_be_cut_is_a_reject(tmp_path: Path) -> None:
    keys = {
        boxed("images/a.png", (0, 0, 0, 5)): "ValueError",
        boxed("images/a.png", (0, 0, 10**9, 5)): "ValueError",
        boxed("images/a.png", (0, 0, 2.5, 5)): "ValueError",
        boxed("images/broken.png", (0, 0, 5, 5)): "UnidentifiedImageError",
        boxed("images/notes.txt", (0, 0, 5, 5)): "NoImageFile",
    }
    found = read(BoxImages(source_of(tmp_path), tuple(keys)))
    assert {item.key: item.error for item in found if isinstance(item, Reject)} == keys
