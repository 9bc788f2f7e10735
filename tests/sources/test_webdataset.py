"""WebDataset tars: every member ends up in a sample or a reject, whatever the tar looks like."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.sample import Reject, Sample, Shard
from sharelock_ray.sources.webdataset import WebDatasetSource

BLOCK = 512


def read(urls: str | tuple[str, ...]) -> list[Sample | Reject]:
    source = WebDatasetSource(urls=urls)
    return [item for shard in source.shards() for item in source.read(shard)]


def read_members(folder: Path, members: dict[str, bytes]) -> list[Sample | Reject]:
    return read(str(support.write_tar(folder / "00000.tar", members)))


def raw_tar(samples: int) -> bytes:
    """A tar of samples with one block of image and one block of caption each: 4 blocks a sample."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(samples):
            for extension in ("jpg", "txt"):
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = BLOCK
                tar.addfile(info, io.BytesIO(b"x" * BLOCK))
    return buffer.getvalue()


class TestSamples:
    def test_image_caption_and_label_are_members_of_one_name(self, tmp_path: Path) -> None:
        members = {"0001.jpg": b"image", "0001.txt": b" a cat\n", "0001.cls": b"7\n", "0002.png": b"other"}
        assert read_members(tmp_path, members) == [
            Sample("00000/0001", b"image", ("a cat",), 7),
            Sample("00000/0002", b"other", (), None),
        ]

    @pytest.mark.parametrize("record", [{"caption": "a cat"}, {"caption": ["a cat"]}, {"caption": " a cat ", "x": 1}])
    def test_caption_of_a_json_member(self, tmp_path: Path, record: dict) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample.captions == ("a cat",)

    def test_a_json_list_is_several_captions_without_the_empty_ones(self, tmp_path: Path) -> None:
        record = {"caption": ["one", " ", "two", None, 3]}
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample.captions == ("one", "two")

    @pytest.mark.parametrize("record", [{}, {"caption": None}, {"caption": ""}, [1], "text"])
    def test_a_json_member_without_caption_gives_none(self, tmp_path: Path, record: object) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample == Sample("00000/1", b"i", ())

    def test_a_text_member_goes_before_json(self, tmp_path: Path) -> None:
        members = {"1.json": b'{"caption": "json"}', "1.txt": "héllo".encode(), "1.jpg": b"i"}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("héllo",))]

    def test_endings_may_be_in_capitals(self, tmp_path: Path) -> None:
        members = {"1.JPEG": b"i", "1.TXT": b"t", "1.Cls": b"3"}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("t",), 3)]

    def test_the_name_ends_at_the_first_dot_and_holds_its_folder(self, tmp_path: Path) -> None:
        (sample,) = read_members(tmp_path, {"a.b/1.seg.png": b"mask", "a.b/1.jpg": b"i"})
        assert sample == Sample("00000/a.b/1", b"i", ())

    def test_hidden_files_and_entries_of_folders_are_passed_over(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo("folder/2.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "1.jpg"
            tar.addfile(link)
            for name in ("folder/._1.jpg", ".DS_Store", "folder/1.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"i"))
        (tmp_path / "x.tar").write_bytes(buffer.getvalue())
        assert read(str(tmp_path / "x.tar")) == [Sample("x/folder/1", b"i")]

    def test_compressed_tars_are_read_as_plain_ones(self, tmp_path: Path) -> None:
        plain = support.write_tar(tmp_path / "a.tar", {"1.jpg": b"i", "1.txt": b"t"})
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
        assert read(str(tmp_path / "b.tar.gz")) == [Sample("b/1", b"i", ("t",))]

    def test_tars_of_an_object_store(self) -> None:
        storage.write_bytes("memory://webdataset/0.tar", raw_tar(2))
        try:
            assert [sample.key for sample in read("memory://webdataset/*.tar")] == ["0/0000", "0/0001"]
        finally:
            storage.remove("memory://webdataset")


class TestRejects:
    @pytest.mark.parametrize("label", [b"cat", b"", b"1.5", b"\xff"])
    def test_a_label_that_is_no_integer(self, tmp_path: Path, label: bytes) -> None:
        found = read_members(tmp_path, {"1.jpg": b"i", "1.cls": label, "2.jpg": b"j"})
        assert (found[0].key, found[0].stage, found[0].error) == ("00000/1", "read", "ValueError")
        assert found[1:] == [Sample("00000/2", b"j")]

    def test_a_label_that_the_schema_cannot_hold(self, tmp_path: Path) -> None:
        (found,) = read_members(tmp_path, {"1.jpg": b"i", "1.cls": b"3000000000"})
        assert isinstance(found, Reject)

    @pytest.mark.parametrize(
        ("name", "content", "error"),
        [("1.txt", b"\xff\xfe", "UnicodeDecodeError"), ("1.json", b'{"caption": ', "JSONDecodeError")],
    )
    def test_a_caption_that_cannot_be_read(self, tmp_path: Path, name: str, content: bytes, error: str) -> None:
        found = read_members(tmp_path, {"1.jpg": b"i", name: content, "2.jpg": b"j"})
        assert (found[0].key, found[0].stage, found[0].error) == ("00000/1", "read", error)
        assert found[1:] == [Sample("00000/2", b"j")]

    def test_a_caption_that_is_no_unicode_text(self, tmp_path: Path) -> None:
        (found,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": b'{"caption": "half \\ud83d"}'})
        assert isinstance(found, Reject)

    def test_a_name_that_is_no_unicode_text_gives_a_key_that_is(self, tmp_path: Path) -> None:
        tar = raw_tar(1).replace(b"0000.jpg", b"\xff000.jpg").replace(b"0000.txt", b"\xff000.txt")
        (tmp_path / "x.tar").write_bytes(with_checksums(tar))
        for item in read(str(tmp_path / "x.tar")):
            item.key.encode()

    def test_a_json_member_nested_too_deeply(self, tmp_path: Path) -> None:
        (found,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": b"[" * 200_000})
        assert isinstance(found, Reject)

    def test_a_key_that_comes_again_in_its_shard(self, tmp_path: Path) -> None:
        found = read_members(tmp_path, {"1.jpg": b"i", "2.jpg": b"j", "1.txt": b"late", "3.jpg": b"k"})
        assert [item.key for item in found] == ["00000/1", "00000/2", "00000/1", "00000/3"]
        assert [type(item) for item in found] == [Sample, Sample, Reject, Sample]
        assert (found[2].stage, found[2].error) == ("read", "DuplicateKey")

    def test_a_caption_beyond_all_measure_is_no_caption(self, tmp_path: Path) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.txt": b"x" * ((1 << 20) + 1)})
        assert sample == Sample("00000/1", b"i", ())


def with_checksums(tar: bytes) -> bytes:
    """`tar` with the checksum of each header made right again; members hold one block each."""
    blocks = [tar[i : i + BLOCK] for i in range(0, len(tar), BLOCK)]
    for i, block in enumerate(blocks):
        if block[257:262] == b"ustar":
            blank = block[:148] + b" " * 8 + block[156:]
            blocks[i] = block[:148] + b"%06o\0 " % sum(blank) + block[156:]
    return b"".join(blocks)


class TestDamagedTars:
    def test_a_tar_that_breaks_off_gives_what_came_before_and_one_reject(self, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(raw_tar(3)[: 9 * BLOCK + 100])  # Within the third image.
        found = read(str(tmp_path / "x.tar"))
        assert [item.key for item in found] == ["x/0000", "x/0001", "x/"]
        assert (found[-1].stage, found[-1].error) == ("read", "ReadError")

    def test_so_does_a_compressed_one(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0)
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for i in range(20):
                info = tarfile.TarInfo(f"{i:04d}.jpg")
                info.size = 4000
                tar.addfile(info, io.BytesIO(noise.bytes(4000)))
        (tmp_path / "x.tar.gz").write_bytes(buffer.getvalue()[:40_000])
        found = read(str(tmp_path / "x.tar.gz"))
        assert 5 <= len(found) - 1 <= 10
        assert isinstance(found[-1], Reject)
        assert found[-1].key == "x/"

    @pytest.mark.parametrize("content", [b"", b"this is no tar" * 1000], ids=["empty", "garbage"])
    def test_what_is_no_tar_is_one_reject(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.tar").write_bytes(content)
        (found,) = read(str(tmp_path / "x.tar"))
        assert isinstance(found, Reject)
        assert (found.key, found.stage) == ("x/", "read")

    def test_a_damaged_header_is_no_silent_end(self, tmp_path: Path) -> None:
        tar = bytearray(raw_tar(3))
        tar[4 * BLOCK : 4 * BLOCK + 8] = b"\xff" * 8  # The second image's name, against its checksum.
        (tmp_path / "x.tar").write_bytes(tar)
        found = read(str(tmp_path / "x.tar"))
        assert [item.key for item in found] == ["x/0000", "x/"]

    @pytest.mark.parametrize("end", [8 * BLOCK, 8 * BLOCK + 100], ids=["between members", "within a header"])
    def test_a_missing_end_is_no_silent_end(self, tmp_path: Path, end: int) -> None:
        (tmp_path / "x.tar").write_bytes(raw_tar(3)[:end])
        found = read(str(tmp_path / "x.tar"))
        assert [item.key for item in found] == ["x/0000", "x/0001", "x/"]


class TestShards:
    def test_are_sorted_and_numbered_with_their_sizes(self, tmp_path: Path) -> None:
        for name in ("b", "a", "c"):
            support.write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"i"})
        size = (tmp_path / "a.tar").stat().st_size
        assert WebDatasetSource(urls=str(tmp_path / "*.tar")).shards() == [
            Shard(i, name, str(tmp_path / f"{name}.tar"), size) for i, name in enumerate("abc")
        ]

    def test_two_may_reuse_the_keys_of_samples(self, tmp_path: Path) -> None:
        for shard in ("00000", "00001"):
            support.write_tar(tmp_path / f"{shard}.tar", {"1.jpg": shard.encode()})
        assert read(str(tmp_path / "*.tar")) == [Sample("00000/1", b"00000"), Sample("00001/1", b"00001")]

    def test_keep_the_folders_that_tell_them_apart(self, tmp_path: Path) -> None:
        for shard in ("en/0", "de/0"):
            support.write_tar(tmp_path / f"{shard}.tar", {"1.jpg": b"i"})
        for pattern in ("*/0.tar", "{en,de}/0.tar", "{en,de}/{0..0}.tar"):
            shards = WebDatasetSource(urls=f"{tmp_path}/{pattern}").shards()
            assert [shard.name for shard in shards] == ["de/0", "en/0"]

    def test_several_patterns_may_name_one_tar_twice(self, tmp_path: Path) -> None:
        support.write_pairs(tmp_path, shards=2, samples=1)
        source = WebDatasetSource(urls=(f"{tmp_path}/*.tar", f"{tmp_path}/00000.tar"))
        assert [shard.name for shard in source.shards()] == ["00000", "00001"]

    def test_a_relative_pattern_is_of_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        support.write_pairs(tmp_path, shards=1, samples=1)
        monkeypatch.chdir(tmp_path)
        assert [shard.name for shard in WebDatasetSource(urls="*.tar").shards()] == ["00000"]

    def test_of_one_name_in_two_folders_are_refused(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            support.write_tar(tmp_path / folder / "0.tar", {"1.jpg": b"i"})
        with pytest.raises(RequestError, match="would both be called '0'"):
            WebDatasetSource(urls=(f"{tmp_path}/a/*.tar", f"{tmp_path}/b/*.tar")).shards()

    def test_that_no_pattern_matches_are_a_wrong_request(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no tar matches"):
            WebDatasetSource(urls=f"{tmp_path}/*.tar").shards()

    @pytest.mark.parametrize("name", ["gone.tar", "{0000..0001}.tar"])
    def test_that_are_missing_are_a_wrong_request(self, tmp_path: Path, name: str) -> None:
        support.write_tar(tmp_path / "0000.tar", {"1.jpg": b"i"})
        with pytest.raises(RequestError, match=r"no such tar: .*(gone|0001)\.tar"):
            WebDatasetSource(urls=f"{tmp_path}/{name}").shards()
