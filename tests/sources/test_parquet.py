"""Parquet files: every row ends up in a sample or a reject, in whichever of the usual layouts."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.sources import parquet
from sharelock_ray.sources.listing import MAX_TEXT_BYTES
from sharelock_ray.sources.parquet import ParquetSource
from sharelock_ray.sources.sample import Reject, Sample
from sharelock_ray.sources.spec import require_captions


def write(path: Path | str, columns: dict[str, object], **options: object) -> str:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    storage.write_bytes(str(path), buffer.getvalue())
    return str(path)


def read(urls: str, **columns: str) -> list[Sample | Reject]:
    return support.read_source(ParquetSource(urls=urls, **columns))


def rows(count: int) -> dict[str, object]:
    return {"jpg": [bytes([65 + i]) * 200 for i in range(count)], "caption": [f"text {i}" for i in range(count)]}


class TestLayouts:
    def test_of_img2dataset(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"key": ["a", "b"], "jpg": [b"i", b"j"], "caption": [" one ", None]})
        assert read(path) == [Sample("0/a", b"i", ("one",)), Sample("0/b", b"j")]

    @pytest.mark.parametrize("text", ["a cat", ["a cat", ""]], ids=["text", "list"])
    def test_of_hugging_face(self, tmp_path: Path, text: object) -> None:
        image = [{"bytes": b"i", "path": "1.jpg"}]
        path = write(tmp_path / "train-00000-of-00001.parquet", {"image": image, "text": [text], "label": [7]})
        assert read(path) == [Sample("train-00000-of-00001/000000000", b"i", ("a cat",), 7)]

    def test_of_other_columns_by_their_names(self, tmp_path: Path) -> None:
        columns = {"photo": [b"i"], "jpg": [b"no"], "alt": ["text"], "kind": [3], "url": ["x"]}
        path = write(tmp_path / "0.parquet", columns)
        found = read(path, image="photo", caption="alt", label="kind", key="url")
        assert found == [Sample("0/x", b"i", ("text",), 3)]

    def test_of_several_usual_names_those_of_the_right_type_count(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"image": ["1.jpg"], "png": [b"i"], "label": ["cat"], "cls": [7]})
        assert read(path) == [Sample("0/000000000", b"i", (), 7)]

    def test_a_caption_that_is_empty_gives_way_to_the_next_usual_column(self, tmp_path: Path) -> None:
        columns = {"jpg": [b"i"] * 4, "caption": ["a", "", None, "d"], "text": [["w"], ["x"], ["y"], []]}
        captions = [sample.captions for sample in read(write(tmp_path / "0.parquet", columns))]
        assert captions == [("a",), ("x",), ("y",), ("d",)]

    def test_columns_may_be_encoded_by_dictionaries_and_lists_of_one_length(self, tmp_path: Path) -> None:
        columns = {
            "image": pa.array([b"i", b"j"]).dictionary_encode(),
            "caption": pa.array([["a", "b"], ["c", ""]], pa.list_(pa.string(), 2)),
            "label": pa.array([7, 3]).dictionary_encode(),
            "key": pa.array(["x", "y"]).dictionary_encode(),
        }
        path = write(tmp_path / "0.parquet", columns)
        assert read(path) == [Sample("0/x", b"i", ("a", "b"), 7), Sample("0/y", b"j", ("c",), 3)]

    @pytest.mark.parametrize(
        "text", [pa.string_view(), pa.list_view(pa.string()), pa.large_list_view(pa.string_view())]
    )
    @pytest.mark.parametrize("image", [pa.binary_view(), pa.binary(1), pa.struct([("bytes", pa.binary_view())])])
    def test_columns_may_be_of_views(self, tmp_path: Path, image: pa.DataType, text: pa.DataType) -> None:
        columns = {
            "image": pa.array([{"bytes": b"i"}, None] if pa.types.is_struct(image) else [b"i", None], image),
            "caption": pa.array(["a", None] if pa.types.is_string_view(text) else [["a", ""], None], text),
            "key": pa.array(["x", "y"], pa.string_view()),
        }
        path = write(tmp_path / "0.parquet", columns)
        assert read(path) == [Sample("0/x", b"i", ("a",)), Sample("0/y", None)]

    def test_a_column_of_an_empty_name_is_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"jpg": [b"i"], "caption": [{"raw": "a"}], "label": ["cat"], "key": [0.5]})
        assert read(path, caption="", label="", key="") == [Sample("0/000000000", b"i")]

    def test_names_of_columns_may_have_capitals_and_white_space(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {" Image": [b"i"], "TEXT": ["a"], "Label ": [3], "Key": ["k"]})
        assert read(path) == [Sample("0/k", b"i", ("a",), 3)]

    def test_captions_are_missing_where_no_column_is_called_so(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"image": [b"i"], "alt": ["a"]})
        with pytest.raises(RequestError, match=r"0\.parquet has no captions for the .* the columns are image, alt$"):
            require_captions(source := ParquetSource(urls=path), source.shards())
        for column in ("alt", ""):
            require_captions(source := ParquetSource(urls=path, caption=column), source.shards())

    def test_a_label_of_minus_one_is_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"image": [b"i", b"j"], "label": [-1, 0]})
        assert [sample.label for sample in read(path)] == [None, 0]

    def test_files_of_an_object_store(self) -> None:
        try:
            for name in "ab":
                write(f"memory://parquet/{name}.parquet", {"jpg": [b"i"]})
            keys = [item.key for item in read("memory://parquet/*.parquet")]
            assert keys == ["a/000000000", "b/000000000"]
        finally:
            storage.remove("memory://parquet")

    def test_rows_are_numbered_through_batches_and_row_groups(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"jpg": [b"%d" % i for i in range(100)]}, row_group_size=40)
        assert read(path) == [Sample(f"0/{i:09d}", b"%d" % i) for i in range(100)]


class TestRejects:
    @pytest.mark.parametrize("image", [pa.array([None], pa.binary()), [{"bytes": None, "path": "1.jpg"}]])
    def test_a_row_without_image_is_a_sample_without_image(self, tmp_path: Path, image: object) -> None:
        path = write(tmp_path / "0.parquet", {"image": image, "caption": ["text"]})
        assert read(path) == [Sample("0/000000000", None, ("text",))]

    def test_columns_that_hold_nothing_may_lack_a_type(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"jpg": [b"i"], "caption": [None], "label": [None], "key": [None]})
        assert read(path, caption="caption") == [Sample("0/000000000", b"i")]

    def test_a_key_that_comes_again(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"key": ["a", "a", "b"], "jpg": [b"i", b"j", b"k"]})
        first, again, other = read(path)
        assert (first, other) == (Sample("0/a", b"i"), Sample("0/b", b"k"))
        assert isinstance(again, Reject)
        assert (again.key, again.stage, again.error) == ("0/a", "read", "DuplicateKey")

    def test_a_label_that_the_schema_cannot_hold(self, tmp_path: Path) -> None:
        bad, good = read(write(tmp_path / "0.parquet", {"jpg": [b"i", b"j"], "label": [2**40, None]}))
        assert (bad.key, bad.stage, bad.error) == ("0/000000000", "read", "ValueError")
        assert good == Sample("0/000000001", b"j")

    def test_a_caption_that_is_no_unicode_text(self, tmp_path: Path) -> None:
        caption = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa"))
        bad, good = read(write(tmp_path / "0.parquet", {"jpg": [b"i", b"j"], "caption": caption}))
        assert (bad.key, bad.error) == ("0/000000000", "UnicodeDecodeError")
        assert good == Sample("0/000000001", b"j", ("a",))

    def test_a_bad_caption_among_several_makes_the_row_one_reject(self, tmp_path: Path) -> None:
        bytes_of_texts = pa.StringArray.from_buffers(
            2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")
        )
        caption = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), bytes_of_texts)
        (bad,) = read(write(tmp_path / "0.parquet", {"jpg": [b"i"], "caption": caption}))
        assert (bad.key, bad.stage, bad.error) == ("0/000000000", "read", "UnicodeDecodeError")

    def test_keys_have_no_control_characters_and_captions_keep_theirs(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"key": ["a\n\0b"], "jpg": [b""], "caption": ["c\0d"]})
        assert read(path) == [Sample("0/a\\x0a\\x00b", b"", ("c\0d",))]

    def test_a_row_without_key_goes_by_its_number(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"key": [None, "", "a"], "jpg": [b"i", b"j", b"k"]})
        assert [item.key for item in read(path)] == ["0/000000000", "0/000000001", "0/a"]


class TestBeyondAllMeasure:
    def test_an_image_and_captions_are_rejects_that_are_not_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet, "MAX_IMAGE_BYTES", 1000)
        texts = [["a"], ["a"], ["a"] * 1001, ["a" * 600_000] * 2, ["a"], ["a"] * 1000]
        columns = {
            "key": [*"abcd", "e" * (MAX_TEXT_BYTES + 1), "f"],
            "jpg": [b"i", b"i" * 1001, b"i", b"i", b"i", b"i" * 1000],
            "caption": texts,
        }
        found = read(write(tmp_path / "0.parquet", columns))
        assert [item.key for item in found] == ["0/a", "0/b", "0/c", "0/d", "0/000000004", "0/f"]
        assert [getattr(item, "error", None) for item in found] == [None, *["TooLargeError"] * 3, None, None]

    def test_a_small_file_of_huge_images_is_a_reject_from_what_it_says_of_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet, "MIN_EXPANDED_BYTES", 4 << 20)
        images = [bytes(3 << 20), bytes(3 << 20), b"i"]
        options = {"row_group_size": 2, "compression": "zstd", "use_dictionary": False}
        path = Path(write(tmp_path / "0.parquet", {"jpg": images}, **options))
        assert path.stat().st_size < 8 << 10
        bad, good = read(str(path))
        assert (bad.key, bad.error, good) == ("0/@0", "DecompressionBombError", Sample("0/000000002", b"i"))
        assert bad.message.startswith("rows 0 to 1: the column 'jpg' has 6,291,")

    def test_lists_of_captions_that_a_dictionary_makes_small_are_one_reject(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"jpg": [b"i"], "caption": [["a"] * 262_000]})
        (bad,) = read(path)
        assert (bad.key, bad.error) == ("0/@0", "TooLargeError")

    def test_rows_are_read_one_by_one_where_they_may_be_large(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A dictionary holds the image once, and a batch of 32 rows 32 times.
        path = write(tmp_path / "0.parquet", {"jpg": [bytes(1 << 20)] * 32})
        monkeypatch.setattr(parquet, "MAX_IMAGE_BYTES", 2 << 20)
        before = pa.total_allocated_bytes()
        (shard,) = ParquetSource(urls=path).shards()
        held = [pa.total_allocated_bytes() - before for _ in ParquetSource(urls=path).read(shard)]
        assert len(held) == 32
        assert max(held) < 8 << 20


class TestDamagedFiles:
    def test_a_damaged_row_group_is_one_reject_beside_whole_ones(self, tmp_path: Path) -> None:
        path = Path(write(tmp_path / "x.parquet", rows(6), row_group_size=2, use_dictionary=False))
        start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
        content = bytearray(path.read_bytes())
        content[start : start + 100] = b"\xff" * 100
        path.write_bytes(content)
        found = read(str(path))
        assert [item.key for item in found] == ["x/000000000", "x/000000001", "x/@2", "x/000000004", "x/000000005"]
        assert isinstance(found[2], Reject)
        assert found[2].stage == "read"
        assert found[2].message.startswith("rows 2 to 3: ")

    def test_a_row_group_damaged_in_the_middle_gives_what_came_before_and_one_reject(self, tmp_path: Path) -> None:
        content = {"jpg": [b"%09d" % i for i in range(100)]}
        options = {"row_group_size": 80, "use_dictionary": False, "data_page_size": 1, "write_batch_size": 10}
        path = Path(write(tmp_path / "x.parquet", content, compression="none", **options))
        damaged = bytearray(path.read_bytes())
        start = damaged.index(b"000000050") - 40
        damaged[start : start + 100] = b"\xff" * 100
        path.write_bytes(damaged)
        found = read(str(path))
        assert [item.key for item in found if isinstance(item, Reject)] == ["x/@32"]
        assert found[32].message.startswith("rows 32 to 79: ")
        assert len(found) == 32 + 1 + 20

    @pytest.mark.parametrize("content", [b"", b"this is no Parquet" * 1000], ids=["empty", "garbage"])
    def test_what_is_no_parquet_is_one_reject_beside_whole_files(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(content)
        write(tmp_path / "b.parquet", rows(1))
        bad, good = read(f"{tmp_path}/*.parquet")
        assert isinstance(bad, Reject)
        assert (bad.key, bad.stage) == ("a/", "read")
        assert good.key == "b/000000000"

    def test_a_file_without_rows_is_an_empty_shard(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "0.parquet", {"jpg": pa.array([], pa.binary())})) == []

    def test_a_storage_that_fails_is_no_reject(self, tmp_path: Path) -> None:
        source = ParquetSource(urls=write(tmp_path / "0.parquet", rows(1)))
        (shard,) = source.shards()
        storage.remove(shard.uri)
        with pytest.raises(FileNotFoundError):
            list(source.read(shard))


class TestWrongRequests:
    def test_nothing_matches(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no Parquet file matches"):
            read(f"{tmp_path}/*.parquet")

    def test_a_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"no Parquet file at .*gone\.parquet"):
            read(f"{tmp_path}/gone.parquet")

    @pytest.mark.parametrize("field", ["image", "caption", "label", "key"])
    def test_a_column_is_missing(self, tmp_path: Path, field: str) -> None:
        path = write(tmp_path / "0.parquet", rows(1))
        with pytest.raises(RequestError, match=f"the {field} column 'gone' is missing; the columns are jpg, caption"):
            ParquetSource(urls=path, **{field: "gone"}).shards()

    @pytest.mark.parametrize(
        ("field", "name", "cells"),
        [
            ("image", "jpg", ["1.jpg"]),
            ("caption", "caption", [{"raw": "a cat"}]),
            ("label", "label", ["cat"]),
            ("label", "label", [1.0]),
            ("key", "key", [b"a"]),
        ],
    )
    def test_a_column_of_another_type(self, tmp_path: Path, field: str, name: str, cells: list[object]) -> None:
        path = write(tmp_path / "0.parquet", rows(1) | {name: cells})
        for columns in ({}, {field: name}):
            with pytest.raises(RequestError, match=f"the {field} column '{name}' holds .*: name another as `{field}`"):
                ParquetSource(urls=path, **columns).shards()

    def test_no_column_holds_images(self, tmp_path: Path) -> None:
        path = write(tmp_path / "0.parquet", {"url": ["x"], "caption": ["text"]})
        with pytest.raises(RequestError, match="has no image column: name it as `image`; the columns are url"):
            ParquetSource(urls=path).shards()

    def test_a_column_is_missing_from_a_later_file(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", rows(1))
        write(tmp_path / "b.parquet", {"url": ["x"]})
        with pytest.raises(RequestError, match=r"b\.parquet has no image column"):
            read(f"{tmp_path}/*.parquet")


def test_each_row_is_in_one_place(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(5) | {"label": [0, 1, 2**40, 0, 1]})
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    write(tmp_path / "c.parquet", rows(0) | {"jpg": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    support.prove_accounted(ParquetSource(urls=f"{tmp_path}/*.parquet"), tmp_path / "features", inputs=6)
