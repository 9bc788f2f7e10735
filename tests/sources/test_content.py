"""What files really hold: text as editors write it, and what is none of what it is called."""

import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

import support
from sharelock_ray.encoders.images import Preprocessing, decode_image
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.content import looks_like, read_lines
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.table import TableSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "a")
    return buffer.getvalue()


KINDS = [
    (b"", "empty"),
    (LFS, "a Git LFS pointer"),
    (HTML, "a web page"),
    (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "the error of an object store"),
    ("tench".encode("utf-16"), "text in UTF-16"),
    ("tench".encode("utf-16-le"), "text in UTF-16"),
    ("tench".encode("utf-16-be"), "text in UTF-16"),
    (gzip.compress(b"a"), "compressed by gzip"),
    (lzma.compress(b"a"), "compressed by xz"),
    (pa.compress(b"a", "zstd", asbytes=True), "compressed by Zstandard"),
    (pa.compress(b"a", "lz4", asbytes=True), "compressed by LZ4"),
    (zipped(), "a ZIP archive"),
]


@pytest.mark.parametrize(("start", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_the_first_bytes_tell_what_a_file_is(start: bytes, kind: str) -> None:
    assert (looks_like(start) or "").startswith(kind)


@pytest.mark.parametrize("start", [b"tench\ngoldfish", b"image,caption\n", "\ufeff[{}]".encode(), b"\0" * 512])
def test_of_what_may_be_anything_nothing_is_said(start: bytes) -> None:
    assert looks_like(start) is None


class TestLines:
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("feed", ["\n", "\r\n"])
    @pytest.mark.parametrize("end", [0, 1, 3])
    def test_end_at_line_feeds_alone(self, tmp_path: Path, mark: str, feed: str, end: int) -> None:
        names = ["tench", "great\u2028white\x0bshark", "\x85 ray", "häher"]
        path = tmp_path / "classes.txt"
        path.write_bytes((mark + feed.join(names) + end * feed).encode())
        assert read_lines(str(path), "class names") == names

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "tench\nhäher\n".encode("latin-1"),
                "not UTF-8 text: line 2 has the byte 0xe4 .byte 7 of the file.: save it as UTF-8",
            ),
            ("tench\n".encode("utf-16"), "not UTF-8 text but text in UTF-16 or UTF-32: save it as UTF-8"),
            (LFS, "not UTF-8 text but a Git LFS pointer: fetch the file itself"),
        ],
        ids=["latin-1", "utf-16", "lfs"],
    )
    def test_of_what_is_no_utf8_are_a_wrong_request(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "classes.txt"
        path.write_bytes(content)
        with pytest.raises(RequestError, match=rf"classes\.txt is {message}"):
            read_lines(str(path), "class names")

    @pytest.mark.parametrize("name", ["gone.txt", ""])
    def test_of_no_file_are_a_wrong_request(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(RequestError, match="no class names at"):
            read_lines(f"{tmp_path}/{name}", "class names")


class TestLists:
    @pytest.mark.parametrize("ending", ["txt", "csv", "tsv", "jsonl", "json"])
    @pytest.mark.parametrize(
        ("content", "kind"),
        [(LFS, "a Git LFS pointer"), (HTML, "a web page"), ("a,b".encode("utf-16"), "text in UTF-16")],
    )
    def test_that_are_none_are_a_wrong_request(self, tmp_path: Path, ending: str, content: bytes, kind: str) -> None:
        path = tmp_path / f"x.{ending}"
        path.write_bytes(content)
        with pytest.raises(RequestError, match=rf"x\.{ending} is not a list but {kind}"):
            TextSource(path=str(path)).shards()

    def test_with_a_header_of_another_encoding_are_a_wrong_request(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes("image,häher\n0.jpg,a\n".encode("latin-1"))
        with pytest.raises(RequestError, match=r"x\.csv: its header is not UTF-8 text: save it as UTF-8"):
            TableSource(path=f"{tmp_path}/x.csv").shards()

    def test_of_json_in_another_encoding_are_a_wrong_request_that_names_the_line(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_bytes('[{"text": "a"},\n{"text": "häher"}]'.encode("latin-1"))
        with pytest.raises(RequestError, match=r"x\.json is not UTF-8 text: line 2 has the byte 0xe4 .byte 27 "):
            TextSource(path=f"{tmp_path}/x.json").shards()


class TestOtherInputs:
    @pytest.mark.parametrize(("content", "kind"), [*KINDS[:3], KINDS[9]], ids=["empty", "lfs", "html", "zstd"])
    def test_that_are_not_what_they_are_called_are_rejects_that_say_so(
        self, tmp_path: Path, content: bytes, kind: str
    ) -> None:
        for ending, source in (("tar", WebDatasetSource), ("parquet", ParquetSource)):
            path = tmp_path / f"x.{ending}"
            path.write_bytes(content)
            (bad,) = support.read_source(source(urls=str(path)))
            assert f"; the file is {kind}" in bad.message
        with pytest.raises(OSError, match=f"cannot identify .*; the file is {kind}"):
            decode_image(content, Preprocessing(image_size=32, resize=32, interpolation="bicubic"))
