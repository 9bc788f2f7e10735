"""Drawing of pictures, from SVG, PNG or a colour font, as square PNG on white."""

import io
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from sharelock_ray import storage

SIDE = 256
# Vision encoders crop the centre, 224 of 256 pixels for DINOv2: that much holds the whole picture.
_CROPPED = 7 / 8
_INNER = round(SIDE * _CROPPED)
# Many drawings fill a part of their page only, which is cut out.
_RENDERED = 2 * _INNER
MAX_SVG_BYTES = 4 << 20
MAX_PIXELS = 64 << 20
MAX_DEPTH = 100
"""Elements of an SVG in one another; the renderer recurses, and crashes at some hundreds."""
EMOJI_SIZE = 109
"""The one size of the bitmaps in Noto Color Emoji."""
_WHITE = (255, 255, 255)
_TEXT_FONT = "package://matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"
_FONT_FAMILY = "DejaVu Sans"
# CSS has 96 pixels an inch. Without a value, resvg refuses sizes in points or millimetres.
_DPI = 96.0


class UndrawableError(ValueError):
    """A picture cannot be drawn, or is blank."""


@dataclass(frozen=True)
class ImageFile:
    """A picture in an SVG or PNG file."""

    path: str


@dataclass(frozen=True)
class Emoji:
    """A character, or a sequence that a font draws as one."""

    text: str
    font: str


Drawing = ImageFile | Emoji


def drawn(drawing: Drawing) -> bytes | UndrawableError:
    """The PNG of a drawing, or why there is none: square, on white, with a margin, at most `SIDE` pixels a side.

    An error is returned since one bad picture of thousands must not end a pool's work.
    """
    try:
        return _png(_framed(_image(drawing)))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        return UndrawableError(" ".join(str(error).split()) or type(error).__name__)


def is_one_glyph(text: str, font: str) -> bool:
    """Whether a colour font draws `text` as one picture, rather than as several or as a missing character."""
    face = _face(font)
    _, top, _, bottom = face.getbbox(text)
    return bottom > top and face.getlength(text) == face.getlength("\N{GRINNING FACE}")


def _image(drawing: Drawing) -> Image.Image:
    """The drawing in RGB."""
    if isinstance(drawing, Emoji):
        return _on_white(_emoji(drawing))
    path = Path(drawing.path)
    if path.suffix.lower() == ".svg":
        return _on_white(_svg(path))
    with Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UndrawableError(f"it has {image.width * image.height:,} pixels, more than {MAX_PIXELS:,}")
        return _on_white(image)


def _svg(path: Path) -> Image.Image:
    import resvg_py

    if path.stat().st_size > MAX_SVG_BYTES:
        raise UndrawableError(f"it has {path.stat().st_size:,} bytes, more than {MAX_SVG_BYTES:,}")
    content = path.read_bytes()
    _check_depth(content)
    try:
        # From a string, so that it refers to no other file; without the system's fonts, so that all machines agree.
        data = resvg_py.svg_to_bytes(
            svg_string=content.decode(),
            width=_RENDERED,
            height=_RENDERED,
            dpi=_DPI,
            skip_system_fonts=True,
            font_files=[str(storage.package_path(_TEXT_FONT))],
            font_family=_FONT_FAMILY,
            serif_family=_FONT_FAMILY,
            sans_serif_family=_FONT_FAMILY,
            monospace_family=_FONT_FAMILY,
        )
    except BaseException as error:
        # A panic of Rust code is no Exception.
        if isinstance(error, Exception) or type(error).__name__ != "PanicException":
            raise
        raise UndrawableError(f"the renderer failed: {error}") from None
    return Image.open(io.BytesIO(bytes(data)))


def _check_depth(content: bytes) -> None:
    depth = 0
    for event, element in ElementTree.iterparse(io.BytesIO(content), ("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > MAX_DEPTH:
            raise UndrawableError(f"more than {MAX_DEPTH} of its elements are in one another")
        element.clear()


def _emoji(emoji: Emoji) -> Image.Image:
    left, top, right, bottom = map(math.floor, _face(emoji.font).getbbox(emoji.text))
    image = Image.new("RGBA", (right - left + 1, bottom - top + 1), (255, 255, 255, 0))
    ImageDraw.Draw(image).text((-left, -top), emoji.text, "black", _face(emoji.font), embedded_color=True)
    return image


@lru_cache(maxsize=1)
def _face(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, EMOJI_SIZE)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, _WHITE)
    white.alpha_composite(image)
    return white.convert("RGB")


def _framed(image: Image.Image) -> Image.Image:
    """What is not white, in the centre of a white square; made smaller if it is large, never larger."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, _WHITE)).getbbox()
    if box is None:
        raise UndrawableError("it is blank")
    image = image.crop(box)
    if max(image.size) > _INNER:
        image.thumbnail((_INNER, _INNER), Image.Resampling.LANCZOS)
    side = math.ceil(max(image.size) / _CROPPED)
    frame = Image.new("RGB", (side, side), _WHITE)
    frame.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return frame


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
