"""From the bytes of an image file to the uint8 pixels a vision encoder expects.

Needs no torch, so that decoding workers stay small.
"""

import io
import struct
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError, is_resource_fault
from sharelock_ray.sources.content import with_kind

Interpolation = Literal["bicubic", "bilinear", "nearest"]
CropMode = Literal["center", "squash"]
_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
# Pillow knows many more, some of which start other programs (EPS starts Ghostscript). JPEG includes MPO.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# How an image is turned upright, by its EXIF orientation.
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
    """An image that claims more pixels than are ever decoded, or that is too narrow to be resized."""


class PixelRangeError(ValueError):
    """An image whose pixels do not say which value is white."""


class Preprocessing(Config):
    """Resize of the shorter side (to `squash`, of both) to `resize` pixels, then a centre crop, `image_size` square."""

    image_size: int
    resize: int
    interpolation: Interpolation
    crop_mode: CropMode = "center"
    reduced_scale: bool = True
    """Whether a JPEG of more than four times `resize` is decoded at 1/2, 1/4 or 1/8 of its size."""


def decode_image(
    data: bytes, preprocessing: Preprocessing, decoded: dict[tuple[int, int], Image.Image] | None = None
) -> np.ndarray:
    """Decodes, orients, resizes and crops one image file: JPEG, PNG, WebP, GIF, BMP or TIFF; the first of its frames.

    Args:
        decoded: what calls with the same `data` share, so that each scale of it is decoded once; empty at first.

    Returns:
        (image_size, image_size, 3) uint8, RGB.

    Raises:
        ImageTooLargeError: the header claims more than 100 megapixels, or the resized image would have them.
        PixelRangeError: the pixels have 32 bits a channel.
        OSError: the bytes are no image that Pillow can decode whole.
        ValueError: its texts or colour profile are beyond all measure.
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
    """An image file by its header: JPEG, PNG, WebP, GIF, BMP or TIFF. Its pixels are decoded when they are asked for.

    The only way to open a file that nobody vouches for. `Image.open` does the same under a limit that is the whole
    process's, warns below ours, and could be told otherwise only for every thread of the host at once.

    Raises:
        ImageTooLargeError: the header claims more than 100 megapixels.
        UnidentifiedImageError: the bytes have none of the formats.
    """
    for name in _FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accepts = Image.OPEN[name]
        # What is returned instead of True says which library is missing.
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # Those by which a plugin says that it is none.
            continue
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(str(error)) from None
        if image.width * image.height > _MAX_PIXELS:
            raise ImageTooLargeError(f"{image.width} x {image.height} pixels are more than {_MAX_PIXELS:,}")
        return image
    problem = f"cannot identify {len(data):,} bytes as an image: none of {', '.join(_FORMATS)}"
    raise UnidentifiedImageError(with_kind(problem, data))


def upright_image(data: bytes, name: str) -> Image.Image:
    """The picture in an image file as a person sees it, with the checks and limits of `decode_image`.

    Args:
        name: what the error calls the file.

    Raises:
        RequestError: it cannot be decoded.
    """
    try:
        with open_image(data) as image:
            return upright(image)
    # A decoder fails on hostile bytes in more ways than it documents.
    except Exception as error:
        if is_resource_fault(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RequestError(f"the image {name} cannot be decoded: {reason}") from None


def upright(image: Image.Image) -> Image.Image:
    """The image as a person sees it: turned as EXIF says, and as 8-bit RGB; what is transparent has its own colour.

    Raises:
        PixelRangeError: the pixels have 32 bits a channel.
    """
    # First, so that what is wrong with the pixels is not taken for damaged EXIF.
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
        # Pillow would warn that the palette's alpha is lost.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # Pillow fails on a damaged EXIF block in more ways than it documents, and none of them says anything of the pixels.
    except Exception:
        return None


def crop_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes and centre-crops an RGB image as timm's evaluation transform does; (image_size, image_size, 3) uint8.

    Raises:
        ImageTooLargeError: the image is so narrow that it would have more than 100 megapixels between the two.
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
    left, top = (round(d / 2) if d > 0 else -(-d // 2) for d in (resized[0] - size, resized[1] - size))
    # A crop beyond the border is padded with black, as torchvision's CenterCrop does.
    return np.asarray(image.crop((left, top, left + size, top + size)))
