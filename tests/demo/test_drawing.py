"""Drawing: a square on white that shows the whole picture, or the reason why there is none."""

import io
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from sharelock_ray.demo import drawing
from sharelock_ray.demo.drawing import Emoji, ImageFile, UndrawableError, drawn

FONT = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{content}</svg>'
RED, WHITE = (255, 0, 0), (255, 255, 255)


def opened(data: bytes | UndrawableError) -> Image.Image:
    assert isinstance(data, bytes), data
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.width) == ("PNG", "RGB", image.height)
    return image


def png(path: Path, image: Image.Image) -> ImageFile:
    image.save(path)
    return ImageFile(str(path))


def svg(path: Path, content: str, width: str = "100pt", height: str = "50pt") -> ImageFile:
    path.write_text(SVG.format(content=content, width=width, height=height))
    return ImageFile(str(path))


class TestPng:
    def test_transparency_is_white_and_a_margin_is_left_for_the_crop(self, tmp_path):
        image = Image.new("RGBA", (70, 70), (0, 0, 0, 0))
        image.paste(RED, (0, 0, 70, 35))
        found = opened(drawn(png(tmp_path / "a.png", image)))
        assert found.size == (80, 80)
        assert found.getpixel((40, 40)) == RED
        assert found.getpixel((40, 5)) == found.getpixel((2, 40)) == WHITE

    def test_empty_paper_around_it_is_cut_away(self, tmp_path):
        image = Image.new("RGB", (1000, 1000), WHITE)
        image.paste(RED, (10, 10, 80, 80))
        assert opened(drawn(png(tmp_path / "a.png", image))).size == (80, 80)

    @pytest.mark.parametrize("mode", ["L", "P", "LA", "RGB", "RGBA", "1", "I;16"])
    def test_every_mode_is_drawn(self, mode, tmp_path):
        opened(drawn(png(tmp_path / "a.png", Image.new("L", (8, 8)).convert(mode))))

    def test_a_large_one_is_made_smaller(self, tmp_path):
        found = opened(drawn(png(tmp_path / "a.png", Image.new("RGB", (600, 300), RED))))
        assert found.size == (256, 256)
        assert found.getpixel((17, 128)) == RED
        assert found.getpixel((128, 60)) == WHITE

    def test_too_many_pixels_are_refused_before_they_are_decoded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(drawing, "MAX_PIXELS", 99)
        assert "it has 100 pixels" in str(drawn(png(tmp_path / "a.png", Image.new("RGB", (10, 10), RED))))

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
    def test_a_broken_one_gives_its_reason_in_one_line(self, content, tmp_path):
        (tmp_path / "a.png").write_bytes(content)
        reason = drawn(ImageFile(str(tmp_path / "a.png")))
        assert isinstance(reason, UndrawableError)
        assert "\n" not in str(reason)

    def test_a_missing_file_gives_its_reason(self, tmp_path):
        assert "No such file" in str(drawn(ImageFile(str(tmp_path / "a.png"))))

    def test_a_blank_one_is_no_picture(self, tmp_path):
        assert str(drawn(png(tmp_path / "a.png", Image.new("RGBA", (9, 9), (255, 255, 255, 99))))) == "it is blank"


class TestSvg:
    @pytest.fixture(autouse=True)
    def _renderer(self):
        pytest.importorskip("resvg_py", reason="needs the package resvg-py, which `make pictures` installs")

    def test_it_keeps_its_shape_on_white(self, tmp_path):
        found = opened(drawn(svg(tmp_path / "a.svg", '<rect width="100%" height="100%" fill="red"/>')))
        assert found.size == (256, 256)
        assert found.getpixel((128, 128)) == RED
        assert found.getpixel((128, 60)) == WHITE

    @pytest.mark.parametrize("size", ["50mm", "2in", "30", "1e9"])
    def test_every_unit_is_drawn_at_the_same_size(self, size, tmp_path):
        content = '<rect width="100%" height="100%" fill="red"/>'
        assert opened(drawn(svg(tmp_path / "a.svg", content, size, size))).size == (256, 256)

    def test_text_needs_no_font_of_the_system(self, tmp_path):
        drawing = svg(tmp_path / "a.svg", '<text y="40" font-size="40" font-family="Nowhere, serif">STOP</text>')
        assert opened(drawn(drawing)).width > 100

    def test_a_drawing_of_text_is_the_same_each_time(self, tmp_path):
        drawing = svg(tmp_path / "a.svg", '<text y="40" font-size="40">STOP</text>')
        assert drawn(drawing) == drawn(drawing)

    def test_it_cannot_show_another_file(self, tmp_path):
        Image.new("RGB", (50, 50), RED).save(tmp_path / "secret.png")
        name = "http://www.w3.org/1999/xlink"
        content = f'<image xmlns:x="{name}" x:href="{{}}" width="50" height="50"/>'
        assert str(drawn(svg(tmp_path / "a.svg", content.format("secret.png")))) == "it is blank"

    @pytest.mark.parametrize(
        "content",
        [
            "<g>",
            "<rect",
            "\udc80",
            "<g>" * 5000 + "</g>" * 5000,
            "<g opacity='0.5'>" * 900 + "<rect width='5' height='5'/>" + "</g>" * 900,
            "",
            "<text>&unknown;</text>",
        ],
        ids=["open", "cut off", "no UTF-8", "very deep", "deep", "empty", "entity"],
    )
    def test_a_hostile_one_gives_its_reason_and_no_crash(self, content, tmp_path):
        (tmp_path / "a.svg").write_bytes(
            SVG.format(content=content, width=9, height=9).encode("utf-8", "surrogateescape")
        )
        reason = drawn(ImageFile(str(tmp_path / "a.svg")))
        assert isinstance(reason, UndrawableError)
        assert "\n" not in str(reason)

    def test_a_huge_one_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(drawing, "MAX_SVG_BYTES", 99)
        assert "more than 99" in str(drawn(svg(tmp_path / "a.svg", " " * 100)))


class TestEmoji:
    def test_it_is_drawn_whole(self):
        found = opened(drawn(Emoji("\N{GRINNING FACE}", FONT)))
        assert 80 < found.width < 140
        assert {found.getpixel((i, 0)) for i in range(found.width)} == {WHITE}

    def test_one_glyph_is_one_picture_but_two_or_none_are_not(self):
        assert drawing.is_one_glyph("\N{GRINNING FACE}", FONT)
        assert not drawing.is_one_glyph("\N{GRINNING FACE}\N{GRINNING FACE}", FONT)
        assert not drawing.is_one_glyph("", FONT)
