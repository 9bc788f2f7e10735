"""Texts without images: every line ends up in a sample or a reject, under its number."""

import json
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.images import Preprocessing
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.chunks import cut, decode, encode_language
from sharelock_ray.sources.sample import Reject, Sample
from sharelock_ray.sources.texts import TextSource


def read(path: Path | str, **options: object) -> list[Sample | Reject]:
    return support.read_source(TextSource(path=str(path), **options))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestLines:
    @pytest.mark.parametrize("rows_per_shard", [1, 2, 1000])
    @pytest.mark.parametrize("end", [b"", b"\n"])
    def test_go_by_their_numbers_from_0_and_an_empty_one_keeps_its_own(
        self, tmp_path: Path, rows_per_shard: int, end: bytes
    ) -> None:
        path = write(tmp_path / "names.txt", "\ufeffa cat\r\n\n \tein Bär \n\u2028\na\0b".encode() + end)
        texts = [("a cat",), (), ("ein Bär",), (), ("a\0b",)]
        assert read(path, rows_per_shard=rows_per_shard) == [
            Sample(f"names-{i // rows_per_shard:05d}/{i:09d}", None, text) for i, text in enumerate(texts)
        ]

    def test_an_empty_one_at_the_end_is_one(self, tmp_path: Path) -> None:
        assert len(read(write(tmp_path / "x.txt", b"a\n\n"))) == 2

    def test_one_that_is_no_utf8_is_a_reject(self, tmp_path: Path) -> None:
        bad, good = read(write(tmp_path / "x.txt", b"\xff\na"))
        assert isinstance(bad, Reject)
        assert (bad.key, bad.stage, bad.error) == ("x-00000/000000000", "read", "UnicodeDecodeError")
        assert good.captions == ("a",)

    def test_of_an_object_store(self) -> None:
        try:
            storage.write_bytes("memory://texts/x.txt", b"one\ntwo")
            assert read("memory://texts/x.txt", rows_per_shard=1)[1] == Sample("x-00001/000000001", None, ("two",))
        finally:
            storage.remove("memory://texts")


class TestColumns:
    @pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
    def test_of_other_lists_are_texts_too(self, tmp_path: Path, ending: str) -> None:
        rows = [{"id": "a", "name": "tench"}, {"id": "b", "name": ""}, {"id": "a", "name": "goldfish"}]
        if ending == "json":
            content = json.dumps(rows)
        elif ending == "jsonl":
            content = "\n".join(map(json.dumps, rows))
        else:
            separator = "," if ending == "csv" else "\t"
            content = "\n".join(separator.join(row) for row in (rows[0], *map(dict.values, rows)))
        path = write(tmp_path / f"x.{ending}", content.encode())
        first, empty, again = read(path, caption_column="name")
        assert (first, empty) == (Sample("x-00000/a", None, ("tench",)), Sample("x-00000/b", None))
        assert (again.key, again.error) == ("x-00000/a", "DuplicateKey")

    def test_by_their_usual_names_may_hold_several_texts(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", b'{"captions": ["one", "two"]}')
        assert read(path) == [Sample("x-00000/000000000", None, ("one", "two"))]

    def test_without_a_usual_name_are_a_wrong_request(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="has no text column: set `caption_column` to one of number, name"):
            read(write(tmp_path / "x.csv", b"number,name\n1,tench"))

    @pytest.mark.parametrize("ending", ["csv", "txt"])
    def test_that_are_missing_are_a_wrong_request(self, tmp_path: Path, ending: str) -> None:
        with pytest.raises(RequestError, match="no column 'gone': its columns are text"):
            read(write(tmp_path / f"x.{ending}", b"text\na"), caption_column="gone")


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty.txt", "has no rows"), ("gone.txt", "no list at"), ("x.md", r"must end in \.txt, \.csv")],
)
def test_a_file_that_is_no_list_is_a_wrong_request(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "empty.txt", b"")
    with pytest.raises(RequestError, match=message):
        read(tmp_path / name)


def test_a_language_encoder_makes_rows_and_a_vision_encoder_rejects(
    tmp_path: Path, language_spec: LanguageSpec
) -> None:
    source = TextSource(path=str(write(tmp_path / "x.txt", b"a red circle\n\nthe green square\n" + b"red " * 25_000)))
    (shard,) = source.shards()
    (chunk,) = cut(source, shard, chunk_size=10)
    (rows,) = encode_language(LanguageEncoder(language_spec), chunk)
    assert rows.columns["key"] == [f"x-00000/{i:09d}" for i in (0, 2, 3)]
    assert [(reject.key, reject.error) for reject in rows.rejects] == [("x-00000/000000001", "MissingCaption")]
    assert (len(rows.columns["text"][2]), rows.truncated) == (99_999, 1)  # Of 100,000 characters, a space at the end.

    preprocessing = Preprocessing(image_size=32, resize=32, interpolation="bicubic")
    rejects = decode(chunk, [preprocessing]).pixels[preprocessing].rejects
    assert [reject.error for reject in rejects] == ["MissingImage"] * 4


def test_each_line_is_in_one_place(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"one\n\n\xff\nfour\n")
    support.prove_accounted(TextSource(path=str(path), rows_per_shard=3), tmp_path / "features", inputs=4)
