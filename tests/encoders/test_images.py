"""Decoding: what timm's evaluation transform sees, from any file, and never a decompression bomb."""

import io
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
import timm.data
from PIL import Image, UnidentifiedImageError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sharelock_ray.encoders.images import (
    ImageTooLargeError,
    PixelRangeError,
    Preprocessing,
    crop_image,
    decode_image,
    upright_image,
)
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError

LOSSLESS: dict[str, dict] = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}}
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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, content: bytes, *more: bytes) -> bytes:
    """A PNG of a header, compressed rows, and chunks between the two."""
    chunks = chunk(b"IHDR", header), *more, chunk(b"IDAT", content), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds a few bytes."""
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(bytes(100)))


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

    @pytest.mark.parametrize("size", [(640, 480), (256, 1000)], ids=str)
    def test_on_a_large_jpeg_that_is_decoded_whole(self, size: tuple[int, int]) -> None:
        data, settings = file_of(picture(size), "JPEG", quality=90), preprocessing()
        whole = settings.model_copy(update={"reduced_scale": False})
        np.testing.assert_array_equal(decode_image(data, whole), as_torchvision(data, settings))

    @pytest.mark.parametrize("size", [(700, 600), (300, 610)], ids=str)
    @pytest.mark.parametrize(
        "model",
        [
            "test_resnet",
            "vit_base_patch16_224",
            "vit_large_patch14_dinov2",
            # Made square without regard to its proportions.
            "convnext_base.fb_in22k_ft_in1k_384",
            "tf_efficientnetv2_s.in21k_ft_in1k",
        ],
    )
    def test_of_timm_for_a_model(self, model: str, size: tuple[int, int]) -> None:
        spec = VisionSpec(name="m", model=model).resolved()
        config = timm.get_pretrained_cfg(model).to_dict()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
        data = file_of(picture(size))
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

    def test_of_exif_is_applied_to_a_large_jpeg_that_is_decoded_at_a_fraction(self) -> None:
        image, exif = smooth((1200, 800)), Image.Exif()
        exif[0x0112] = 6
        upright = decode_image(file_of(image.transpose(Image.Transpose.ROTATE_270)), preprocessing())
        difference = np.abs(decode_image(file_of(image, "JPEG", exif=exif), preprocessing()).astype(int) - upright)
        assert difference.max() <= 8

    def test_of_exif_is_applied_to_sixteen_bits(self) -> None:
        grey, exif = np.asarray(smooth((48, 32)).convert("L")), Image.Exif()
        exif[0x0112] = 6
        data = file_of(Image.fromarray(grey.astype(np.uint16) * 257), exif=exif)
        expected = decode_image(file_of(Image.fromarray(np.rot90(grey, -1))), preprocessing())
        np.testing.assert_array_equal(decode_image(data, preprocessing()), expected)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
    def test_of_damaged_exif_is_none(self, kind: str) -> None:
        image = smooth((48, 32))
        data = file_of(image, kind, exif=b"Exif\0\0MM\0*garbage" if kind == "JPEG" else b"garbage!", **LOSSLESS[kind])
        expected = decode_image(file_of(image, kind, **LOSSLESS[kind]), preprocessing())
        np.testing.assert_array_equal(decode_image(data, preprocessing()), expected)

    def test_of_exif_is_applied_beside_a_damaged_tag(self) -> None:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "description"
        # The tag of the description becomes that of the height, so that a text lies where a number belongs.
        tags = exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x01\x00\x02")
        image = smooth((48, 32))
        turned = decode_image(file_of(image.transpose(Image.Transpose.ROTATE_270), "JPEG"), preprocessing())
        difference = np.abs(decode_image(file_of(image, "JPEG", exif=tags), preprocessing()).astype(int) - turned)
        assert difference.max() <= 8


class TestFrames:
    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
    def test_the_first_of_several_is_taken(self, kind: str) -> None:
        first, second = Image.new("RGB", (40, 40), (200, 20, 20)), Image.new("RGB", (40, 40), (20, 20, 200))
        data = file_of(first, kind, save_all=True, append_images=[second])
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 2
        assert np.abs(decode_image(data, preprocessing()).astype(int) - (200, 20, 20)).max() <= 3


class TestColours:
    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
    def test_of_any_kind_come_out_as_rgb_bytes(self, mode: str) -> None:
        kind = "JPEG" if mode == "CMYK" else "PNG"
        image = smooth((50, 40))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
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

    def test_cmyk_is_read_as_adobe_writes_it_inverted(self) -> None:
        data = file_of(smooth((48, 40)).convert("CMYK"), "JPEG", quality=95)
        assert b"\xff\xee\x00\x0eAdobe" in data
        expected = decode_image(file_of(smooth((48, 40))), preprocessing())
        assert np.abs(decode_image(data, preprocessing()).astype(int) - expected).max() <= 6

    @pytest.mark.parametrize("transparency", [1, b"\x00\x80"], ids=["a colour", "a list"])
    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_a_palette_with_transparency_keeps_its_colours(self, transparency: object, kind: str) -> None:
        image = Image.new("P", (40, 40), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        transparency = 1 if kind == "GIF" else transparency
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = decode_image(file_of(image, kind, transparency=transparency), preprocessing())
        assert (pixels == (10, 200, 30)).all()

    @pytest.mark.parametrize(
        ("mode", "colour", "seen"), [("RGBA", (10, 200, 30, 0), (10, 200, 30)), ("LA", (99, 0), (99, 99, 99))]
    )
    def test_what_is_transparent_has_its_own_colour_and_no_background(
        self, mode: str, colour: tuple, seen: tuple
    ) -> None:
        assert (decode_image(file_of(Image.new(mode, (40, 40), colour)), preprocessing()) == seen).all()

    def test_sixteen_bits_keep_their_brightness(self) -> None:
        grey = Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))
        pixels = decode_image(file_of(grey), preprocessing())
        assert np.abs(pixels.astype(int) - 128).max() <= 1

    @pytest.mark.parametrize("colour_type", [2, 4, 6], ids=["RGB", "LA", "RGBA"])
    def test_sixteen_bits_of_several_channels_keep_their_brightness(self, colour_type: int) -> None:
        row = b"\0" + struct.pack(">H", 128 * 257) * 40 * {2: 3, 4: 2, 6: 4}[colour_type]
        data = png(struct.pack(">IIBBBBB", 40, 40, 16, colour_type, 0, 0, 0), zlib.compress(row * 40))
        assert (decode_image(data, preprocessing()) == 128).all()

    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_thirty_two_bits_have_no_known_white(self, mode: str) -> None:
        with pytest.raises(PixelRangeError, match="no known white"):
            decode_image(file_of(smooth((50, 40)).convert("L").convert(mode), "TIFF"), preprocessing())


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

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpeg_that_breaks_off_and_gives_no_half_grey_picture(self, part: float, progressive: bool) -> None:
        data = file_of(picture((400, 300)), "JPEG", progressive=progressive)
        with pytest.raises(OSError, match="truncated"):
            decode_image(data[: int(part * len(data))], preprocessing())

    @pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
    def test_a_picture_so_narrow_that_resizing_would_fill_the_memory(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageTooLargeError, match="would be resized to"):
            decode_image(file_of(Image.new("1", size)), preprocessing(image_size=224, resize=256))

    def test_not_a_narrow_one_that_can_be_resized(self) -> None:
        image = Image.new("RGB", (1, 200), (200, 20, 20))
        assert (decode_image(file_of(image), preprocessing()) == (200, 20, 20)).all()

    @pytest.mark.parametrize("kind", ["EPS", "PDF", "SVG", "ICO", "PPM", "JPEG2000", "AVIF"])
    def test_other_formats_without_starting_what_renders_them(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(*_: object, **__: object) -> None:
            raise AssertionError("another program was started")

        for name in ("Popen", "run", "check_call", "check_output"):
            monkeypatch.setattr(subprocess, name, started)
        svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        data = svg if kind == "SVG" else file_of(picture((40, 40)), kind)
        with pytest.raises(UnidentifiedImageError, match="none of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
            decode_image(data, preprocessing())

    @pytest.mark.parametrize(("kind", "count"), [(b"zTXt", 1), (b"zTXt", 70), (b"iCCP", 1)])
    def test_texts_and_colour_profiles_that_are_bombs(self, kind: bytes, count: int) -> None:
        bomb = zlib.compress(bytes((80 << 20) // count if count == 1 else 1 << 20), 1)
        chunks = [chunk(kind, b"k%d\0\0" % i + bomb) for i in range(count)]
        data = png(struct.pack(">IIBBBBB", 40, 40, 8, 0, 0, 0, 0), zlib.compress(bytes(41 * 40)), *chunks)
        with pytest.raises(ValueError, match=r"too large|Too much memory"):
            decode_image(data, preprocessing())

    def test_no_long_text_that_is_none(self) -> None:
        text = chunk(b"tEXt", b"k\0" + b"x" * (5 << 20))
        data = png(struct.pack(">IIBBBBB", 40, 40, 8, 0, 0, 0, 0), zlib.compress((b"\0" + b"\x63" * 40) * 40), text)
        assert (decode_image(data, preprocessing()) == 99).all()

    @pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0"])
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(OSError, match="cannot identify"):
            decode_image(data, preprocessing())


class TestTheLimitOfTheHostProcess:
    # Without TIFF, because Pillow counts its pixels once more during decoding.
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
    def test_is_no_limit_of_ours_and_stays_as_it_was(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = file_of(picture((40, 40)), kind)
        expected = decode_image(data, preprocessing())
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        np.testing.assert_array_equal(decode_image(data, preprocessing()), expected)
        assert Image.MAX_IMAGE_PIXELS == 1000

    def test_does_not_replace_ours_where_the_host_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(ImageTooLargeError):
            decode_image(png_header(20_000, 20_000), preprocessing())


class TestOnePicture:
    def test_is_upright(self) -> None:
        tags = Image.Exif()
        tags[0x0112] = 6
        image = smooth((50, 40))
        found = upright_image(file_of(image, exif=tags), "a.png")
        np.testing.assert_array_equal(np.asarray(found), np.rot90(np.asarray(image), -1))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (file_of(picture((200, 200)), "JPEG")[:3000], "truncated"),
            (file_of(picture((40, 40)), "EPS"), "none of JPEG, PNG"),
            (png_header(20_000, 20_000), "20000 x 20000 pixels are more than"),
            (b"", "cannot identify 0 bytes"),
        ],
        ids=["truncated", "EPS", "400 megapixels", "empty"],
    )
    def test_that_cannot_be_decoded_is_one_line(self, data: bytes, reason: str) -> None:
        with pytest.raises(RequestError, match=rf"^the image a\.img cannot be decoded: .*{reason}") as error:
            upright_image(data, "a.img")
        assert "\n" not in str(error.value)


class TestHeadersThatLie:
    """Where the checksum is right, nothing tells a wrong size from a picture that ends early."""

    @pytest.mark.parametrize(("height", "below"), [(20, 200), (80, 0)])
    def test_of_a_png_give_the_rows_that_are_there(self, height: int, below: int) -> None:
        rows = zlib.compress((b"\0" + b"\xc8" * 40) * 40)
        pixels = decode_image(png(struct.pack(">IIBBBBB", 40, height, 8, 0, 0, 0, 0), rows), preprocessing(32, 32))
        assert (pixels[-1] == below).all()
        assert (pixels[0] == 200).all()

    def test_of_a_jpeg_give_the_rows_that_are_there(self) -> None:
        data = file_of(Image.new("RGB", (40, 40), (200, 200, 200)), "JPEG")
        at = data.index(b"\xff\xc0") + 5
        assert struct.unpack(">HH", data[at : at + 4]) == (40, 40)
        pixels = decode_image(data[:at] + struct.pack(">H", 80) + data[at + 2 :], preprocessing(32, 32))
        assert (pixels[0] == 200).all()


class TestLargePictures:
    def test_of_a_hundred_megapixels_are_decoded(self) -> None:
        data = file_of(Image.new("L", (10_000, 10_000), 77), "JPEG")
        assert (decode_image(data, preprocessing()) == 77).all()
