"""WebDataset tars: every member ends up in a sample or a reject, whatever the tar looks like."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.config import content_hash
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.chunks import cut, decode, encode_language
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

    def test_texts_lose_a_byte_order_mark(self, tmp_path: Path) -> None:
        texts = {"0.txt": "a cat", "1.json": '{"caption": "a dog"}', "2.json": '["\ufeffa fish"]', "0.cls": "7"}
        found = read_members(tmp_path, {name: f"\ufeff{text}".encode() for name, text in texts.items()})
        assert [(sample.captions, sample.label) for sample in found] == [
            (("a cat",), 7),
            (("a dog",), None),
            (("a fish",), None),
        ]

    @pytest.mark.parametrize(
        "record",
        [
            {"caption": "a cat"},
            {"caption": ["a cat"]},
            {"captions": ["a cat"]},
            {"caption": " a cat ", "x": 1},
            {"caption": [], "text": "a cat"},
            ["a cat"],
        ],
    )
    def test_caption_of_a_json_member(self, tmp_path: Path, record: object) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample.captions == ("a cat",)

    def test_a_json_list_is_several_captions_without_the_empty_ones(self, tmp_path: Path) -> None:
        record = {"caption": ["one", " ", "two", None, 3]}
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample.captions == ("one", "two")

    @pytest.mark.parametrize("record", [{}, {"caption": None}, {"caption": ""}, [1], [], "text", 7])
    def test_a_json_member_without_caption_gives_none(self, tmp_path: Path, record: object) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": json.dumps(record).encode()})
        assert sample == Sample("00000/1", b"i", ())

    def test_a_text_member_goes_before_json(self, tmp_path: Path) -> None:
        members = {"1.json": b'{"caption": "json"}', "1.txt": "héllo".encode(), "1.jpg": b"i"}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("héllo",))]

    def test_an_empty_text_member_goes_behind_json(self, tmp_path: Path) -> None:
        members = {"1.json": b'{"caption": "json"}', "1.txt": b" \n", "1.jpg": b"i"}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("json",))]

    def test_endings_may_be_in_capitals(self, tmp_path: Path) -> None:
        members = {"1.JPEG": b"i", "1.TXT": b"t", "1.Cls": b"3"}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("t",), 3)]

    def test_the_name_ends_at_the_first_dot_and_holds_its_folder(self, tmp_path: Path) -> None:
        (sample,) = read_members(tmp_path, {"a.b/1.seg.png": b"mask", "a.b/1.jpg": b"i"})
        assert sample == Sample("00000/a.b/1", b"i", ())

    @pytest.mark.parametrize(
        "names",
        [
            ("image.jpg", "caption.txt", "cls"),
            ("input.PNG", "text", "cls"),
            ("5.jpg", "5.txt", "5.cls"),
            ("5.jpg", "5.json", "5.cls"),
        ],
        ids=" ".join,
    )
    def test_an_ending_may_have_a_word_or_number_before_it(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        contents = (b"i", b'["a cat"]' if "5.json" in names else b"a cat", b"7")
        members = {f"1.{name}": content for name, content in zip(names, contents, strict=True)}
        assert read_members(tmp_path, members) == [Sample("00000/1", b"i", ("a cat",), 7)]

    def test_a_name_in_the_current_folder_or_from_the_root_is_a_plain_one(self, tmp_path: Path) -> None:
        found = read_members(tmp_path, {"./a/1.jpg": b"i", "/a/1.txt": b"t", "a//2.jpg": b"j"})
        assert found == [Sample("00000/a/1", b"i", ("t",)), Sample("00000/a/2", b"j")]

    def test_hidden_files_and_folders_are_passed_over(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", mode="w") as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in ("folder/._1.jpg", ".DS_Store", ".git/1.jpg", "folder/1.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"i"))
        assert read(str(tmp_path / "x.tar")) == [Sample("x/folder/1", b"i")]

    def test_members_of_one_sample_may_lie_apart(self, tmp_path: Path) -> None:
        names = ["1.jpg", "2.jpg", "3.jpg", "2.txt", "1.txt", "3.cls", "4.txt", "3.txt"]
        contents = {name: b"7" if name.endswith("cls") else f" {name}".encode() for name in names}
        assert read_members(tmp_path, contents) == [
            Sample("00000/1", b" 1.jpg", ("1.txt",)),
            Sample("00000/2", b" 2.jpg", ("2.txt",)),
            Sample("00000/3", b" 3.jpg", ("3.txt",), 7),
            Sample("00000/4", None, ("4.txt",)),
        ]

    def test_numbered_text_members_are_several_captions(self, tmp_path: Path) -> None:
        members = {"1.jpg": b"i", "1.10.txt": b"c", "1.2.txt": b"b", "1.txt": b"a", "1.url.txt": b"no"}
        other = {"2.jpg": b"j", "2.caption1.txt": b"b", "2.caption0.txt": b"a"}
        assert read_members(tmp_path, members | other) == [
            Sample("00000/1", b"i", ("a", "b", "c")),
            Sample("00000/2", b"j", ("a", "b")),
        ]

    def test_a_text_member_of_several_lines_is_one_caption(self, tmp_path: Path) -> None:
        (sample,) = read_members(tmp_path, {"1.jpg": b"i", "1.txt": b"\xef\xbb\xbfa cat\r\non a mat\n"})
        assert sample.captions == ("a cat\r\non a mat",)

    def test_a_caption_per_line_where_asked_for_as_in_clip_benchmark(self, tmp_path: Path) -> None:
        members = {
            "s0.webp": b"i",
            "s0.txt": b"\xef\xbb\xbfa cat\r\n\n on a mat\n",
            "s1.webp": b"j",
            "s1.0.txt": b"one\ntwo",
            "s1.1.txt": b"three",
            "s2.webp": b"k",
            "s2.json": b'["four\\nfive"]',
        }
        source = WebDatasetSource(urls=str(support.write_tar(tmp_path / "0.tar", members)), caption_per_line=True)
        found = [sample.captions for sample in support.read_source(source) if isinstance(sample, Sample)]
        assert found == [("a cat", "on a mat"), ("one", "two", "three"), ("four\nfive",)]

    def test_the_default_of_captions_per_line_renames_nothing(self) -> None:
        urls = "s3://bucket/x.tar"
        assert content_hash(WebDatasetSource(urls=urls)) == content_hash({"format": "webdataset", "urls": urls})

    @pytest.mark.parametrize(
        ("ending", "compress"),
        [("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tar.bz2", bz2.compress), ("tar.xz", lzma.compress)],
    )
    def test_compressed_tars_are_read_as_plain_ones(self, tmp_path: Path, ending: str, compress: Callable) -> None:
        plain = support.write_tar(tmp_path / "plain", {"1.jpg": b"i", "2.jpg": b"j", "1.txt": b"t"})
        (tmp_path / f"b.{ending}").write_bytes(compress(plain.read_bytes()))
        assert read(f"{tmp_path}/b.{ending}") == [Sample("b/1", b"i", ("t",)), Sample("b/2", b"j")]

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
        (found,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": b'{"caption": ["whole", "half \\ud83d"]}'})
        assert isinstance(found, Reject)
        assert (found.key, found.stage, found.error) == ("00000/1", "read", "UnicodeEncodeError")

    def test_captions_that_are_odd_but_texts_are_kept_whole(self, tmp_path: Path) -> None:
        long = "x" * 100_000
        found = read_members(tmp_path, {"1.txt": b"a\0b", "2.txt": long.encode(), "3.txt": " \n\u2003".encode()})
        assert [item.captions for item in found] == [("a\0b",), (long,), ()]

    def test_a_name_that_is_no_unicode_text_gives_a_key_that_is(self, tmp_path: Path) -> None:
        tar = raw_tar(1).replace(b"0000.jpg", b"\xff000.jpg").replace(b"0000.txt", b"\xff000.txt")
        (tmp_path / "x.tar").write_bytes(with_checksums(tar))
        (sample,) = read(str(tmp_path / "x.tar"))
        assert sample.key == "x/\\udcff000"

    @pytest.mark.parametrize(
        ("name", "key"),
        [("a\nb", "00000/a\\x0ab"), ("a\0b", "00000/a\\x00b"), ("k" * 10_000, f"00000/{'k' * 10_000}")],
        ids=["newline", "NUL", "long"],
    )
    def test_a_name_that_no_line_can_hold_is_escaped_and_a_long_one_is_kept(
        self, tmp_path: Path, name: str, key: str
    ) -> None:
        with tarfile.open(tmp_path / "00000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("short.jpg")
            info.size, info.pax_headers = 1, {"path": f"{name}.jpg"}
            tar.addfile(info, io.BytesIO(b"i"))
        assert read(f"{tmp_path}/00000.tar") == [Sample(key, b"i")]

    @pytest.mark.parametrize(
        "texts",
        [
            {"0.json": json.dumps(["a"] * 262_000).encode()},
            {"0.0.txt": b"a" * 600_000, "0.1.txt": b"a" * 600_000},
        ],
        ids=["many", "long together"],
    )
    def test_captions_beyond_all_measure_are_one(self, tmp_path: Path, texts: dict[str, bytes]) -> None:
        bad, good = read_members(tmp_path, {"0.jpg": b"i"} | texts | {"1.txt": b"a" * (1 << 20)})
        assert isinstance(bad, Reject)
        assert (bad.key, bad.stage, bad.error) == ("00000/0", "read", "TooLargeError")
        assert isinstance(good, Sample)

    def test_a_json_member_nested_too_deeply(self, tmp_path: Path) -> None:
        (found,) = read_members(tmp_path, {"1.jpg": b"i", "1.json": b"[" * 200_000})
        assert isinstance(found, Reject)

    @pytest.mark.parametrize(
        ("names", "first"),
        [
            (["1.jpg", "1.txt", "1.jpg", "1.txt"], ("1.txt 1",)),
            (["1.jpg", "2.png", "1.txt", "1.jpg", "1.txt"], ("1.txt 2",)),
            (["1.jpg", "1.jpg", "1.txt"], ()),
            (["1.JPG", "1.txt", "1.jpg"], ("1.txt 1",)),
        ],
        ids=["one after the other", "apart", "without a caption", "in capitals"],
    )
    def test_a_key_that_comes_again_is_a_reject_and_takes_no_caption_of_the_first(
        self, tmp_path: Path, names: list[str], first: tuple[str, ...]
    ) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for place, name in enumerate(names):
                content = f"{name} {place}".encode()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        found = [item for item in read(f"{tmp_path}/x.tar") if item.key == "x/1"]
        assert found[0] == Sample("x/1", f"{names[0]} 0".encode(), first)
        assert [(item.stage, item.error) for item in found[1:]] == [("read", "DuplicateKey")]

    @pytest.mark.parametrize(
        "names", [("1.png", "1.jpg"), ("1.5.jpg", "1.6.jpg"), ("1.jpg", "1.5.jpg"), ("1.a.jpg", "1.b.jpg")], ids=str
    )
    def test_several_images_of_one_name(self, tmp_path: Path, names: tuple[str, str]) -> None:
        texts = {name.replace("jpg", "txt"): b"t" for name in names}
        bad, good = read_members(tmp_path, {**dict.fromkeys(names, b"i"), **texts, "2.jpg": b"j"})
        assert (bad.key, bad.stage, bad.error) == ("00000/1", "read", "SeveralImages")
        assert bad.message.startswith(f"'{names[0]}' and '{names[1]}' belong to one sample")
        assert good == Sample("00000/2", b"j")

    def test_a_sample_without_image_or_caption_names_the_members_that_it_has(
        self, tmp_path: Path, vision_spec: VisionSpec, language_spec: LanguageSpec
    ) -> None:
        source = WebDatasetSource(urls=str(support.write_tar(tmp_path / "x.tar", {"1.ppm": b"i", "1.url.txt": b"t"})))
        (chunk,) = cut(source, source.shards()[0], chunk_size=2)
        pixels = decode(chunk, [vision_spec.preprocessing]).pixels[vision_spec.preprocessing]
        (texts,) = encode_language(LanguageEncoder(language_spec), chunk)
        assert [(reject.error, reject.message) for reject in [*pixels.rejects, *texts.rejects]] == [
            ("MissingImage", "the sample has no image among 1.ppm, 1.url.txt"),
            ("MissingCaption", "the sample has no caption among 1.ppm, 1.url.txt"),
        ]

    @pytest.mark.parametrize("name", ["1.jpg", "1.txt", "1.cls"])
    def test_a_member_beyond_all_measure_is_not_read(self, tmp_path: Path, name: str) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for member in {"1.jpg", name}:
                info = tarfile.TarInfo(member)
                info.size = 1 if member != name else (256 << 20) + 1 if name == "1.jpg" else (1 << 20) + 1
                # A file with a hole stands for the content, so that the test writes none.
                start = tar.fileobj.tell()
                tar.addfile(info)
                tar.offset = start + BLOCK + -(-info.size // BLOCK) * BLOCK
                tar.fileobj.seek(tar.offset)
        (found,) = read(f"{tmp_path}/x.tar")
        assert isinstance(found, Reject)
        assert (found.key, found.stage, found.error) == ("x/1", "read", "TooLargeError")

    @pytest.mark.parametrize("name", ["../../1.jpg", "a/../1.jpg", "/../1.jpg"])
    def test_a_name_that_leads_out_of_the_folder(self, tmp_path: Path, name: str) -> None:
        bad, good = read_members(tmp_path / "in" / "deep", {name: b"i", "2.jpg": b"j"})
        assert isinstance(bad, Reject)
        assert (bad.stage, bad.error) == ("read", "UnsafeName")
        assert good == Sample("00000/2", b"j")
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "in" / "deep" / "00000.tar"]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_a_link_or_device_makes_its_sample_one(self, tmp_path: Path, kind: bytes) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
            info = tarfile.TarInfo("1.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"t"))
        (found,) = read(f"{tmp_path}/x.tar")
        assert isinstance(found, Reject)
        assert (found.key, found.stage, found.error) == ("x/1", "read", "UnsupportedMember")


def with_checksums(tar: bytes) -> bytes:
    """`tar` with the checksum of each header made right again; members hold one block each."""
    blocks = [tar[i : i + BLOCK] for i in range(0, len(tar), BLOCK)]
    for i, block in enumerate(blocks):
        if block[257:262] == b"ustar":
            blank = block[:148] + b" " * 8 + block[156:]
            blocks[i] = block[:148] + b"%06o\0 " % sum(blank) + block[156:]
    return b"".join(blocks)


class TestDamagedTars:
    """The layout of `raw_tar`: image header, image, caption header, caption, a block each."""

    def test_a_tar_that_breaks_off_gives_what_came_before_and_one_reject(self, tmp_path: Path) -> None:
        (tmp_path / "x.tar").write_bytes(raw_tar(3)[: 9 * BLOCK + 100])  # Within the third image.
        found = read(str(tmp_path / "x.tar"))
        assert [item.key for item in found] == ["x/0000", "x/0001", "x/@4096"]
        assert (found[-1].stage, found[-1].error) == ("read", "DamagedTar")
        assert found[-1].message == "bytes 4,096 to 4,708: '0002.jpg' claims 512 bytes, and the tar has 100 left"

    def test_a_compressed_one_names_the_compression_and_no_byte(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0)
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for i in range(20):
                info = tarfile.TarInfo(f"{i:04d}.jpg")
                info.size = 4000
                tar.addfile(info, io.BytesIO(noise.bytes(4000)))
        (tmp_path / "x.tar.gz").write_bytes(buffer.getvalue()[:40_000])
        found = read(str(tmp_path / "x.tar.gz"))
        # Their checksum is gone with the end.
        assert [item.key for item in found] == [*(f"x/{i:04d}" for i in range(40_000 // 4000 - 1)), "x/"]
        assert {(type(item), item.stage, item.error) for item in found} == {(Reject, "read", "EOFError")}

    @pytest.mark.parametrize(
        ("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
    )
    def test_a_compressed_one_whose_checksum_is_wrong_keeps_the_streams_before(
        self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
    ) -> None:
        # Of two streams, one behind the other, the first holds a sample and the image of the next.
        tar = raw_tar(4)
        first, second = compress(tar[: 6 * BLOCK]), bytearray(compress(tar[6 * BLOCK :]))
        place = {"gz": -8, "bz2": 12, "xz": -40}[ending]
        second[place] ^= 1
        for name, content in ("x", first + bytes(second)), ("whole", first + bytes(64) + compress(tar[6 * BLOCK :])):
            (tmp_path / f"{name}.tar.{ending}").write_bytes(content)
        *good, bad = read(f"{tmp_path}/x.tar.{ending}")
        assert good == [Sample("x/0000", b"x" * BLOCK, ("x" * BLOCK,)), Sample("x/0001", b"x" * BLOCK)]
        assert (bad.key, bad.stage, bad.error) == ("x/", "read", "CorruptCompressionError")
        assert bad.message.startswith("damaged from byte 3,072 on: ")
        assert len(read(f"{tmp_path}/whole.tar.{ending}")) == 4

    def test_a_compressed_one_with_changed_bytes_gives_none_of_them(self, tmp_path: Path) -> None:
        tar = raw_tar(300)
        content = bytearray(gzip.compress(tar, compresslevel=0))  # Stored as it is: a changed byte stays one.
        content[content.index(tar[:BLOCK]) + BLOCK] ^= 1
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "x.tar.gz").write_bytes(content)
        found = read(f"{tmp_path}/data/x.tar.gz")
        assert {(type(item), item.error) for item in found} == {(Reject, "CorruptCompressionError")}
        # The end of the tar, to which the fault was noticed, is the last one.
        assert [item.key for item in found][:200] == [f"x/{i:04d}" for i in range(200)]
        assert found[-1].key == "x/"
        # A set of nothing but rejects would be a problem of its own.
        support.write_tar(tmp_path / "data" / "y.tar", {"0.jpg": support.jpeg()})
        source = WebDatasetSource(urls=f"{tmp_path}/data/*.tar*")
        support.prove_accounted(source, tmp_path / "features", inputs=len(found) + 1)

    def test_a_gzip_bomb_gives_rejects_alone(self, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as stream:
            stream.write(raw_tar(2)[: 8 * BLOCK])
            for _ in range(65):
                stream.write(bytes(1 << 20))
        found = read(str(tmp_path / "x.tar.gz"))
        assert [item.key for item in found] == ["x/0000", "x/0001", "x/"]
        assert {(type(item), item.error) for item in found} == {(Reject, "DecompressionBombError")}

    @pytest.mark.parametrize("content", [b"", b"this is no tar" * 1000], ids=["empty", "garbage"])
    def test_what_is_no_tar_is_one_reject_beside_whole_tars(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(content)
        (tmp_path / "b.tar").write_bytes(raw_tar(1))
        bad, good = read(str(tmp_path / "*.tar"))
        assert isinstance(bad, Reject)
        assert (bad.key, bad.stage, bad.error) == ("a/@0", "read", "DamagedTar")
        assert good.key == "b/0000"

    def test_after_a_damaged_header_it_goes_on(self, tmp_path: Path) -> None:
        tar = bytearray(raw_tar(3))
        tar[4 * BLOCK : 4 * BLOCK + 8] = b"\xff" * 8  # The second image's name, against its checksum.
        (tmp_path / "x.tar").write_bytes(tar)
        assert read(str(tmp_path / "x.tar")) == [
            Sample("x/0000", b"x" * BLOCK, ("x" * BLOCK,)),
            Sample("x/0001", None, ("x" * BLOCK,)),
            Sample("x/0002", b"x" * BLOCK, ("x" * BLOCK,)),
            Reject("x/@2048", "read", "DamagedTar", "bytes 2,048 to 3,072: bad checksum"),
        ]

    @pytest.mark.parametrize("end", [8 * BLOCK, 8 * BLOCK + 100], ids=["between members", "within a header"])
    def test_a_missing_end_is_no_silent_end(self, tmp_path: Path, end: int) -> None:
        (tmp_path / "x.tar").write_bytes(raw_tar(3)[:end])
        found = read(str(tmp_path / "x.tar"))
        assert [item.key for item in found] == ["x/0000", "x/0001", "x/@4096"]

    def test_each_sample_is_in_one_place(self, tmp_path: Path) -> None:
        tar = bytearray(raw_tar(5)[: 18 * BLOCK])  # The fifth caption and the end are cut off.
        tar[8 * BLOCK] ^= 1
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "x.tar").write_bytes(tar)
        # Five samples; the third has lost its image, and two stretches are damaged.
        source = WebDatasetSource(urls=f"{tmp_path}/data/x.tar")
        support.prove_accounted(source, tmp_path / "features", inputs=7)


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
        with pytest.raises(RequestError, match="have the same name '0'"):
            WebDatasetSource(urls=(f"{tmp_path}/a/*.tar", f"{tmp_path}/b/*.tar")).shards()

    def test_that_no_pattern_matches_are_a_wrong_request(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no tar matches"):
            WebDatasetSource(urls=f"{tmp_path}/*.tar").shards()

    @pytest.mark.parametrize("name", ["gone.tar", "{0000..0001}.tar"])
    def test_that_are_missing_are_a_wrong_request(self, tmp_path: Path, name: str) -> None:
        support.write_tar(tmp_path / "0000.tar", {"1.jpg": b"i"})
        with pytest.raises(RequestError, match=r"no tar at .*(gone|0001)\.tar: check the path"):
            WebDatasetSource(urls=f"{tmp_path}/{name}").shards()
