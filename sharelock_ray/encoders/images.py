"""From the bytes of an image file to the uint8 pixels a vision encoder expects.

Needs no torch, so that decoding workers stay small.
"""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from sharelock_ray.config import Config

Interpolation = Literal["bicubic", "bilinear", "nearest"]
_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
# A small file can claim any size (a decompression bomb); 100 megapixels is 300 MB once decoded.
_MAX_PIXELS = 100_000_000
# The limit below, which raises one error of ours, replaces Pillow's two.
Image.MAX_IMAGE_PIXELS = None


class ImageTooLargeError(ValueError):
    """An image whose header claims more pixels than are ever decoded."""


class Preprocessing(Config):
    """Resize of the shorter side to `resize` pixels, then a centre crop of `image_size` pixels square."""

    image_size: int
    resize: int
    interpolation: Interpolation


def decode_image(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Decodes, orients, resizes and crops one image file.

    Returns:
        (image_size, image_size, 3) uint8, RGB.

    Raises:
        ImageTooLargeError: the header claims more than 100 megapixels.
        OSError: the bytes are no image that Pillow can decode whole.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ImageTooLargeError(f"{image.width} x {image.height} pixels are more than {_MAX_PIXELS:,}")
        # JPEG can be decoded at 1/2, 1/4 or 1/8 scale; twice the wanted side keeps the resampled result close.
        image.draft("RGB", (2 * preprocessing.resize, 2 * preprocessing.resize))
        return crop_image(upright(image), preprocessing)


def upright(image: Image.Image) -> Image.Image:
    """The image as a person sees it: turned as EXIF says, and as 8-bit RGB."""
    if image.mode.startswith("I;16"):
        # Pillow would clip the upper 255/256 of the range to white.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return ImageOps.exif_transpose(image).convert("RGB")


def crop_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes and centre-crops an RGB image as timm's evaluation transform does; (image_size, image_size, 3) uint8."""
    width, height = image.size
    short, size = preprocessing.resize, preprocessing.image_size
    resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if image.size != resized:
        image = image.resize(resized, _INTERPOLATION[preprocessing.interpolation])
    left, top = (round(d / 2) if d > 0 else -(-d // 2) for d in (resized[0] - size, resized[1] - size))
    # A crop beyond the border is padded with black, as torchvision's CenterCrop does.
    return np.asarray(image.crop((left, top, left + size, top + size)))
