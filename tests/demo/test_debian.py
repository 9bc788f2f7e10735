"""Debian packages: from a file at hand or by apt-get, unpacked without Debian's tools; one line where there is none."""

import io
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from sharelock_ray import storage
from sharelock_ray.demo.debian import Package, unpacked
from sharelock_ray.errors import RequestError


def deb(files: dict[str, bytes]) -> bytes:
    """A `.deb`: an `ar` archive of a version, a control tar and a data tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/art/link.svg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.svg"
        tar.addfile(link)
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    return b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        + content
        + b"\n" * (len(content) % 2)
        for name, content in members.items()
    )


CONTENT = deb(
    {
        "usr/share/art/a.svg": b"<svg/>",
        "usr/share/art/animals/owl.svg": b"<svg id='owl'/>",
        "usr/share/art/voice.ogg": b"sound",
        "usr/share/doc/other.svg": b"<svg/>",
        "usr/share/art/../../outside.svg": b"<svg/>",
    }
)
PACKAGE = Package("art", "1:2.0-3", storage.sha256(CONTENT), "usr/share/art", ("*.svg",))


def apt_get(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a stand-in for apt-get on the path; each call is a line of the file that is returned."""
    folder.mkdir(parents=True)
    (folder / "package").write_bytes(CONTENT)
    program = folder / "apt-get"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "calls"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


class TestAtHand:
    def test_the_wanted_files_are_unpacked_without_links(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        (tmp_path / "art_2.0-3_all.deb").write_bytes(CONTENT)
        folder = unpacked(PACKAGE, tmp_path)
        assert files(folder) == ["a.svg", "animals/owl.svg"]
        assert (folder / "animals/owl.svg").read_bytes() == b"<svg id='owl'/>"

    def test_it_is_unpacked_once(self, tmp_path):
        (tmp_path / "art_2.0-3_all.deb").write_bytes(CONTENT)
        folder = unpacked(PACKAGE, tmp_path)
        (tmp_path / "art_2.0-3_all.deb").unlink()
        (folder / "mine").touch()
        assert unpacked(PACKAGE, tmp_path) == folder
        assert "mine" in files(folder)

    def test_another_file_of_that_name_does_not_count(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        (tmp_path / "art_9.9_all.deb").write_bytes(b"another version")
        with pytest.raises(RequestError, match=r"art 1:2\.0-3 is missing"):
            unpacked(PACKAGE, tmp_path)

    def test_another_digest_has_another_folder(self, tmp_path):
        other = deb({"usr/share/art/b.svg": b"<svg/>"})
        (tmp_path / "art_1_all.deb").write_bytes(CONTENT)
        (tmp_path / "art_2_all.deb").write_bytes(other)
        changed = replace(PACKAGE, sha256=storage.sha256(other))
        assert files(unpacked(PACKAGE, tmp_path)) == ["a.svg", "animals/owl.svg"]
        assert files(unpacked(changed, tmp_path)) == ["b.svg"]


class TestDownload:
    def test_the_pinned_version_is_asked_for(self, tmp_path, monkeypatch):
        calls = apt_get(tmp_path / "bin", f"cp {tmp_path}/bin/package art_2.0-3_all.deb", monkeypatch)
        folder = unpacked(PACKAGE, tmp_path / "packages")
        assert files(folder) == ["a.svg", "animals/owl.svg"]
        assert calls.read_text().splitlines()[0].endswith("download art=1:2.0-3")
        assert files(tmp_path / "packages") == [f"{folder.name}/a.svg", f"{folder.name}/animals/owl.svg"]

    def test_lists_of_its_own_are_fetched_where_the_system_has_none(self, tmp_path, monkeypatch):
        script = f"""
        case "$*" in
          *Lists*update) mkdir lists;;
          *Lists*download*) cp {tmp_path}/bin/package art_2.0-3_all.deb;;
          *) echo "E: Unable to locate package art" >&2; exit 100;;
        esac"""
        apt_get(tmp_path / "bin", script, monkeypatch)
        assert files(unpacked(PACKAGE, tmp_path / "packages")) == ["a.svg", "animals/owl.svg"]

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            ("Version '1:2.0-3' for 'art' was not found", "this release of Debian has another version"),
            ("Failed to fetch x  Connection failed", "Failed to fetch x  Connection failed"),
        ],
    )
    def test_a_failure_is_one_line_with_what_to_do(self, said, told, tmp_path, monkeypatch):
        apt_get(tmp_path / "bin", f'echo "E: {said}" >&2; exit 100', monkeypatch)
        with pytest.raises(RequestError) as caught:
            unpacked(PACKAGE, tmp_path / "packages")
        line = str(caught.value)
        assert "\n" not in line
        assert told in line
        assert PACKAGE.sha256 in line
        assert "--data" in line
        assert files(tmp_path / "packages") == []

    def test_a_file_of_another_digest_is_refused(self, tmp_path, monkeypatch):
        apt_get(tmp_path / "bin", "echo changed > art_2.0-3_all.deb", monkeypatch)
        with pytest.raises(RequestError, match="another SHA-256"):
            unpacked(PACKAGE, tmp_path / "packages")

    def test_without_apt_get_the_line_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(RequestError, match="no apt-get on this machine"):
            unpacked(PACKAGE, tmp_path)
