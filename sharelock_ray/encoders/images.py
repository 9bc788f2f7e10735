"""Decodes image files to the uint8 pixels that a vision encoder expects.

Does not import torch, so that decoding workers stay small.
"""

import io
import struct
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError, is_resource_fault
from sharelock_ray.sources.content import with_kind

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
CropMode = Literal["center", "center_floor", "squash"]
_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pillow reads more formats, but some start other programs (EPS starts Ghostscript). JPEG includes MPO.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# EXIF orientation to the transposition that turns the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A small file can claim any size (a decompression bomb); 100 megapixels is 300 MB once decoded.
_MAX_PIXELS = 100_000_000


class ImageTooLargeError(ValueError):
    """The image has too many pixels, or is too narrow to be resized."""


class PixelRangeError(ValueError):
    """The value of white is unknown for the image's pixel format."""


class Preprocessing(Config):
    """Resizes the shorter side (both sides for `squash`) to `resize` pixels, then crops the centre to `image_size`."""

    image_size: int
    resize: int
    interpolation: Interpolation
    crop_mode: CropMode = "center"
    reduced_scale: bool = True
    """Whether a JPEG larger than four times `resize` is decoded at 1/2, 1/4 or 1/8 of its size."""


def decode_image(
    data: bytes, preprocessing: Preprocessing, decoded: dict[tuple[int, int], Image.Image] | None = None
) -> np.ndarray:
    """Decodes, orients, resizes and crops the first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

    Args:
        decoded: cache shared by calls with the same `data`, so that each scale is decoded once; initially empty.

    Returns:
        (image_size, image_size, 3) uint8, RGB.

    Raises:
        ImageTooLargeError: the header claims more than 100 megapixels, or the resized image would have them.
        PixelRangeError: the pixels have 32 bits a channel.
        OSError: Pillow cannot decode the whole image.
        ValueError: its text chunks or colour profile are too large.
    """
    with open_image(data) as image:
        if preprocessing.reduced_scale:
            # Twice the wanted side keeps the resampled result close.
            image.draft("RGB", (2 * preprocessing.resize, 2 * preprocessing.resize))
        known = {} if decoded is None else decoded
        scale = image.size
        if scale not in known:
            known[scale] = upright(image)
        return crop_image(known[scale], preprocessing)


def open_image(data: bytes) -> Image.Image:
    """Reads the header of a JPEG, PNG, WebP, GIF, BMP or TIFF file; its pixels are decoded on first use.

    Use it for every untrusted file. `Image.open` has a process-wide pixel limit, warns below ours, and can only be
    configured for all threads of the process at once.

    Raises:
        ImageTooLargeError: the header claims more than 100 megapixels.
        UnidentifiedImageError: the bytes are in none of these formats.
    """
    for name in _FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accepts = Image.OPEN[name]
        # A string instead of True names a missing library.
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # A plugin rejects the file.
            continue
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(str(error)) from None
        if image.width * image.height > _MAX_PIXELS:
            raise ImageTooLargeError(f"{image.width} x {image.height} pixels are more than {_MAX_PIXELS:,}")
        return image
    problem = f"cannot identify {len(data):,} bytes as an image: none of {', '.join(_FORMATS)}"
    raise UnidentifiedImageError(with_kind(problem, data))


def upright_image(data: bytes, name: str) -> Image.Image:
    """Decodes an image file in its upright orientation, with the checks and limits of `decode_image`.

    Args:
        name: name of the file in the error message.

    Raises:
        RequestError: the file cannot be decoded.
    """
    try:
        with open_image(data) as image:
            return upright(image)
    # Decoders raise undocumented errors on corrupt files.
    except Exception as error:
        if is_resource_fault(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RequestError(f"the image {name} cannot be decoded: {reason}") from None


def upright(image: Image.Image) -> Image.Image:
    """Returns the image as 8-bit RGB, turned upright by its EXIF orientation; transparency is dropped.

    Raises:
        PixelRangeError: the pixels have 32 bits a channel.
    """
    # First, so that a decoding error is not mistaken for damaged EXIF.
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F"):
        raise PixelRangeError(f"pixels of mode {image.mode} have no known white: convert the image to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow would clip the upper 255/256 of the range to white.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "P":
        # Avoids Pillow's warning about the palette's alpha.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises undocumented errors on damaged EXIF; the pixels may still be valid.
    except Exception:
        return None


def crop_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes and centre-crops an RGB image as evaluation transforms do; (image_size, image_size, 3) uint8.

    Raises:
        ImageTooLargeError: the image is so narrow that the resized one would have more than 100 megapixels.
    """
    width, height = image.size
    short, size = preprocessing.resize, preprocessing.image_size
    if preprocessing.crop_mode == "squash":
        resized = (short, short)
    else:
        resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if resized[0] * resized[1] > _MAX_PIXELS:
        raise ImageTooLargeError(f"{width} x {height} pixels would be resized to {resized[0]} x {resized[1]}")
    if image.size != resized:
        image = image.resize(resized, _INTERPOLATION[preprocessing.interpolation])
    # An odd margin is halved as torchvision's CenterCrop does, or as transformers does.
    half = (lambda d: d // 2) if preprocessing.crop_mode == "center_floor" else (lambda d: round(d / 2))
    left, top = (half(d) if d > 0 else -(-d // 2) for d in (resized[0] - size, resized[1] - size))
    # Pillow pads a crop beyond the border with black, as torchvision's CenterCrop does.
    return np.asarray(image.crop((left, top, left + size, top + size)))
