"""Decoding: what timm's evaluation transform sees, from any file, and never a decompression bomb."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import timm.data
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sharelock_ray.encoders.images import ImageTooLargeError, Preprocessing, crop_image, decode_image
from sharelock_ray.encoders.spec import VisionSpec

SIZES = [(40, 32), (32, 40), (32, 32), (47, 33), (33, 130), (300, 21), (9, 9), (64, 63)]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def smooth(size: tuple[int, int]) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def preprocessing(image_size: int = 24, resize: int = 32, interpolation: str = "bicubic") -> Preprocessing:
    return Preprocessing(image_size=image_size, resize=resize, interpolation=interpolation)


def as_torchvision(data: bytes, settings: Preprocessing) -> np.ndarray:
    transform = transforms.Compose(
        [
            transforms.Resize(settings.resize, InterpolationMode(settings.interpolation)),
            transforms.CenterCrop(settings.image_size),
        ]
    )
    return np.asarray(transform(Image.open(io.BytesIO(data)).convert("RGB")))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


class TestEqualsTheEvaluationTransform:
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_on_png(self, size: tuple[int, int], interpolation: str) -> None:
        data, settings = file_of(picture(size)), preprocessing(interpolation=interpolation)
        np.testing.assert_array_equal(decode_image(data, settings), as_torchvision(data, settings))

    @pytest.mark.parametrize("size", [(32, 24), (45, 63), (127, 100)], ids=str)
    def test_on_jpeg_that_is_less_than_four_times_as_large(self, size: tuple[int, int]) -> None:
        data = file_of(picture(size), "JPEG", quality=90)
        np.testing.assert_array_equal(decode_image(data, preprocessing()), as_torchvision(data, preprocessing()))

    @pytest.mark.parametrize("size", [(640, 480), (256, 1000), (129, 128)], ids=str)
    def test_closely_on_jpeg_that_is_decoded_at_a_smaller_scale(self, size: tuple[int, int]) -> None:
        data = file_of(smooth(size), "JPEG", quality=95)
        ours, theirs = decode_image(data, preprocessing()), as_torchvision(data, preprocessing())
        assert np.abs(ours.astype(int) - theirs).max() <= 3

    @pytest.mark.parametrize("model", ["test_resnet", "vit_base_patch16_224", "vit_large_patch14_dinov2"])
    def test_of_timm_for_a_model(self, model: str) -> None:
        spec = VisionSpec(name="m", model=model).resolved()
        config = timm.get_pretrained_cfg(model).to_dict()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
        data = file_of(picture((700, 600)))
        expected = transform(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy()
        ours = (decode_image(data, spec.preprocessing) / 255 - spec.mean) / spec.std
        np.testing.assert_allclose(ours, expected, atol=1e-5)

    @pytest.mark.parametrize("missing", [1, 2, 4, 5])
    def test_where_the_crop_is_larger_than_the_picture(self, missing: int) -> None:
        data, settings = file_of(picture((40, 50))), preprocessing(image_size=32, resize=32 - missing)
        np.testing.assert_array_equal(decode_image(data, settings), as_torchvision(data, settings))

    @pytest.mark.parametrize("missing", [3, 7])
    def test_where_the_crop_is_larger_by_three_of_four(self, missing: int) -> None:
        data, settings = file_of(picture((40, 50))), preprocessing(image_size=32, resize=32 - missing)
        np.testing.assert_array_equal(decode_image(data, settings), as_torchvision(data, settings))

    def test_for_a_picture_in_memory_as_for_its_file(self) -> None:
        image = picture((50, 40))
        np.testing.assert_array_equal(crop_image(image, preprocessing()), decode_image(file_of(image), preprocessing()))


class TestOrientation:
    @pytest.mark.parametrize(
        ("tag", "turn"),
        [
            (2, Image.Transpose.FLIP_LEFT_RIGHT),
            (3, Image.Transpose.ROTATE_180),
            (6, Image.Transpose.ROTATE_270),
            (8, Image.Transpose.ROTATE_90),
        ],
    )
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_of_exif_is_applied(self, tag: int, turn: Image.Transpose, kind: str) -> None:
        image, exif = smooth((48, 32)), Image.Exif()
        exif[0x0112] = tag
        data = file_of(image, kind, exif=exif)
        expected = decode_image(file_of(image.transpose(turn)), preprocessing())
        difference = np.abs(decode_image(data, preprocessing()).astype(int) - expected)
        assert difference.max() <= (0 if kind == "PNG" else 8)


class TestColours:
    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK", "F"])
    def test_of_any_kind_come_out_as_rgb_bytes(self, mode: str) -> None:
        kind = {"CMYK": "JPEG", "F": "TIFF"}.get(mode, "PNG")
        image = smooth((50, 40))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert("L").convert("F") if mode == "F" else image.convert(mode)
        pixels = decode_image(file_of(image, kind), preprocessing())
        assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)

    def test_grey_is_three_equal_channels(self) -> None:
        grey = smooth((50, 40)).convert("L")
        pixels = decode_image(file_of(grey), preprocessing())
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], as_torchvision(file_of(grey), preprocessing())[..., 0])

    def test_cmyk_keeps_its_colours(self) -> None:
        red = Image.new("RGB", (40, 40), (200, 20, 20))
        pixels = decode_image(file_of(red.convert("CMYK"), "JPEG", quality=95), preprocessing())
        assert np.abs(pixels.astype(int) - (200, 20, 20)).max() <= 6

    def test_a_palette_with_alpha_keeps_its_colours(self) -> None:
        image = Image.new("P", (40, 40), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow would rather have it converted to RGBA.
            pixels = decode_image(file_of(image, transparency=b"\x00\x80"), preprocessing())
        assert (pixels == (10, 200, 30)).all()

    def test_sixteen_bits_keep_their_brightness(self) -> None:
        grey = Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))
        pixels = decode_image(file_of(grey), preprocessing())
        assert np.abs(pixels.astype(int) - 128).max() <= 1


class TestRefuses:
    @pytest.mark.parametrize("size", [(10_001, 10_000), (100_000, 1_700)], ids=str)
    def test_more_than_a_hundred_megapixels_by_the_header_alone(self, size: tuple[int, int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ImageTooLargeError, match=f"{size[0]} x {size[1]} pixels"):
                decode_image(png_header(*size), preprocessing())

    def test_far_more_by_the_same_error(self) -> None:
        with pytest.raises(ImageTooLargeError):
            decode_image(png_header(100_000, 100_000), preprocessing())

    def test_a_large_picture_that_is_allowed_without_a_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with pytest.raises(OSError, match=r"truncated|broken"):  # Only the header is real.
                decode_image(png_header(9_500, 10_000), preprocessing())

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
    def test_a_file_that_breaks_off(self, kind: str) -> None:
        data = file_of(picture((200, 200)), kind)
        with pytest.raises(OSError, match=r"truncated|broken|failed|decoder"):
            decode_image(data[: len(data) // 2], preprocessing())

    @pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0"])
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(OSError, match="cannot identify"):
            decode_image(data, preprocessing())
