"""Lists of images: every row ends up in a sample or a reject, however the list is written."""

import csv
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.sources.listing import MAX_CAPTIONS, MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from sharelock_ray.sources.sample import Reject, Sample
from sharelock_ray.sources.spec import require_captions
from sharelock_ray.sources.table import TableSource

PAIRS = [{"file_name": f"{i}.jpg", "text": f'"ä {i}" is, next'} for i in range(5)]


def write_list(path: Path, records: list[dict[str, object]]) -> str:
    """The records as the ending of `path` says, with an image for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        unquoted = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]), **unquoted if path.suffix == ".tsv" else {})
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, indent=2))
    for i in range(len(records)):
        (path.parent / f"{i}.jpg").write_bytes(b"%d" % i)
    return str(path)


def read(path: str, **options: object) -> list[Sample | Reject]:
    return support.read_source(TableSource(path=path, **options))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
class TestEveryKindOfList:
    @pytest.mark.parametrize("rows_per_shard", [1, 2, 5, 1000])
    def test_gives_the_same_samples_in_runs(self, tmp_path: Path, ending: str, rows_per_shard: int) -> None:
        source = TableSource(path=write_list(tmp_path / f"x.{ending}", PAIRS), rows_per_shard=rows_per_shard)
        assert support.read_source(source) == [
            Sample(f"x-{i // rows_per_shard:05d}/{i:09d}", b"%d" % i, (PAIRS[i]["text"],)) for i in range(5)
        ]

    def test_may_start_with_a_byte_order_mark(self, tmp_path: Path, ending: str) -> None:
        path = Path(write_list(tmp_path / f"x.{ending}", PAIRS))
        plain = read(str(path), rows_per_shard=2)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read(str(path), rows_per_shard=2) == plain

    def test_names_its_columns(self, tmp_path: Path, ending: str) -> None:
        records = [{"a": "0.jpg", "b": "text", "c": 3, "d": "x", "caption": "other"}]
        path = write_list(tmp_path / f"x.{ending}", records)
        found = read(path, image_column="a", caption_column="b", label_column="c", key_column="d")
        assert found == [Sample("x-00000/x", b"0", ("text",), 3)]

    def test_a_missing_image_is_a_reject(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", PAIRS[:2])
        (tmp_path / "0.jpg").unlink()
        bad, good = read(path)
        assert (bad.key, bad.stage, bad.error) == ("x-00000/000000000", "read", "FileNotFoundError")
        assert good.key == "x-00000/000000001"

    def test_a_label_that_is_no_integer_is_a_reject(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "label": label} for label in ("cat", 1.5, "")])
        bad, worse, none = read(path, label_column="label")
        assert (bad.error, worse.error) == ("ValueError", "ValueError")
        assert isinstance(none, Sample)
        assert none.label is None

    def test_a_key_that_comes_again_is_a_reject(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"id": "a", "image": f"{i}.jpg"} for i in range(2)])
        first, again = read(path)
        assert first == Sample("x-00000/a", b"0")
        assert (again.key, again.stage, again.error) == ("x-00000/a", "read", "DuplicateKey")

    def test_a_row_without_image_is_a_sample_without_image(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "text": "a"}, {"image": "", "text": "b"}])
        assert read(path)[1] == Sample("x-00000/000000001", None, ("b",))

    @pytest.mark.parametrize("column", ["image_column", "caption_column", "label_column", "key_column"])
    def test_a_missing_column_is_a_wrong_request(self, tmp_path: Path, ending: str, column: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "text": "a"}])
        with pytest.raises(RequestError, match="no column 'gone': its columns are image, text"):
            TableSource(path=path, **{column: "gone"}).shards()

    def test_a_list_without_images_is_a_wrong_request(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"url": "0.jpg", "text": "a"}])
        with pytest.raises(RequestError, match="has no image column: set `image_column` to one of url, text"):
            TableSource(path=path).shards()

    def test_names_of_columns_may_have_capitals_and_white_space(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{" Image": "0.jpg", "Caption ": "a", "LABEL": 3, "Id": "k"}])
        assert read(path, label_column="label") == [Sample("x-00000/k", b"0", ("a",), 3)]
        path = write_list(tmp_path / f"y.{ending}", [{"image": "0.jpg", "Text": "a", "text": "b"}])
        assert read(path, caption_column="Text")[0].captions == ("a",)

    def test_captions_are_missing_where_no_column_is_called_so(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "alt": "a"}])
        with pytest.raises(
            RequestError, match=r"x\.\w+ has no captions for the language .* the columns are image, alt$"
        ):
            require_captions(source := TableSource(path=path), source.shards())
        for column in ("alt", ""):
            require_captions(source := TableSource(path=path, caption_column=column), source.shards())
        assert read(path, caption_column="") == [Sample("x-00000/000000000", b"0")]

    def test_a_label_of_minus_one_is_none(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "label": label} for label in (-1, 0)])
        assert [sample.label for sample in read(path, label_column="label")] == [None, 0]

    def test_an_empty_list_is_a_wrong_request(self, tmp_path: Path, ending: str) -> None:
        (tmp_path / f"x.{ending}").write_text("[]" if ending == "json" else "")
        with pytest.raises(RequestError, match="has no rows"):
            TableSource(path=f"{tmp_path}/x.{ending}").shards()

    def test_a_missing_list_is_a_wrong_request(self, tmp_path: Path, ending: str) -> None:
        with pytest.raises(RequestError, match="no list at"):
            TableSource(path=f"{tmp_path}/x.{ending}").shards()

    def test_each_row_is_in_one_place(self, tmp_path: Path, ending: str) -> None:
        records = [{"id": key, "image": f"{i}.jpg", "text": "t"} for i, key in enumerate("abcad")]
        path = write_list(tmp_path / "data" / f"x.{ending}", records)
        (tmp_path / "data" / "1.jpg").unlink()
        source = TableSource(path=path, rows_per_shard=4)
        # The key `a` is a row and, as it comes again, a reject.
        support.prove_accounted(source, tmp_path / "features", inputs=5)


class TestQuotationMarks:
    def test_of_a_csv_hold_a_field_of_several_lines_together(self, tmp_path: Path) -> None:
        texts = ["one,\r\n\n,two", '"quoted", ""', "three"]
        path = write_list(tmp_path / "x.csv", [{"image": "0.jpg", "text": text} for text in texts])
        assert [sample.captions for sample in read(path, rows_per_shard=2)] == [(text,) for text in texts]

    @pytest.mark.parametrize(
        "rows", ['0.jpg,"open\n0.jpg,a\n', '0.jpg,"open\n0.jpg,"closed"\n'], ids=["to the end", "to the next"]
    )
    def test_of_a_csv_that_swallow_the_rows_behind_are_a_wrong_request(self, tmp_path: Path, rows: str) -> None:
        (tmp_path / "x.csv").write_text(f"image,text\n0.jpg,good\n{rows}")
        with pytest.raises(RequestError, match=r"x\.csv cannot be read: the row that begins at line 3"):
            TableSource(path=f"{tmp_path}/x.csv").shards()

    def test_of_a_tsv_are_characters_of_its_text(self, tmp_path: Path) -> None:
        texts = ['"two starts with one', 'three " holds one', '"four has two"', "five"]
        path = write_list(tmp_path / "x.tsv", [{"image": "0.jpg", "text": text} for text in texts])
        assert [sample.captions for sample in read(path)] == [(text,) for text in texts]


class TestCaptions:
    @pytest.mark.parametrize(
        "record",
        [
            {"caption": "a cat", "blip_caption": "no"},
            {"caption": None, "blip_caption": "a cat"},
            {"captions": ["a cat", " "]},
            {
                "conversations": [
                    {"from": "human", "value": "Describe.\n<image>"},
                    {"from": "gpt", "value": "a cat"},
                    {"from": "gpt", "value": "again"},
                ]
            },
        ],
        ids=["caption", "blip_caption", "list", "conversation"],
    )
    def test_of_llava(self, tmp_path: Path, record: dict) -> None:
        path = write_list(tmp_path / "chat.json", [{"id": "GCC_1", "image": "0.jpg"} | record])
        assert read(path) == [Sample("chat-00000/GCC_1", b"0", ("a cat",))]

    def test_a_bad_one_among_several_makes_the_row_one_reject(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        rows = [{"image": "0.jpg", "captions": ["good", "half \ud83d"]}, {"image": "0.jpg", "text": "a\0b"}]
        path.write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "0.jpg").write_bytes(b"i")
        bad, good = read(str(path))
        assert isinstance(bad, Reject)
        assert (bad.key, bad.stage, bad.error) == ("x-00000/000000000", "read", "UnicodeEncodeError")
        assert good == Sample("x-00000/000000001", b"i", ("a\0b",))

    @pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
    def test_lose_a_byte_order_mark(self, tmp_path: Path, ending: str) -> None:
        path = write_list(tmp_path / f"x.{ending}", [{"image": "0.jpg", "text": "\ufeff a cat\u2028two"}])
        assert read(path) == [Sample("x-00000/000000000", b"0", ("a cat\u2028two",))]

    @pytest.mark.parametrize("captions", ["a" * (MAX_TEXT_BYTES + 1), ["a"] * (MAX_CAPTIONS + 1)], ids=["long", "many"])
    @pytest.mark.parametrize("ending", ["jsonl", "json"])
    def test_beyond_all_measure_are_rejects(self, tmp_path: Path, ending: str, captions: object) -> None:
        rows = [{"image": "0.jpg", "captions": captions}, {"image": "1.jpg", "captions": ["a"] * MAX_CAPTIONS}]
        bad, good = read(write_list(tmp_path / f"x.{ending}", rows))
        assert (bad.key, bad.stage, bad.error) == ("x-00000/000000000", "read", "TooLargeError")
        assert isinstance(good, Sample)

    def test_may_be_missing_in_the_first_rows_of_json(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text('{"image": "0.jpg"}\n{"image": "0.jpg", "caption": "a"}\n')
        require_captions(source := TableSource(path=str(path)), source.shards())


class TestKeys:
    def test_are_numbers_where_a_name_is_neither_text_nor_number(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text("".join(f'{{"image": "", "id": {name}}}\n' for name in ('"a\\nb"', "7", "[[]]", '""')))
        keys = [item.key for item in read(str(path))]
        assert keys == ["x-00000/a\\x0ab", "x-00000/7", "x-00000/000000002", "x-00000/000000003"]


class TestImages:
    def test_may_lie_in_another_folder(self, tmp_path: Path) -> None:
        path = write_list(tmp_path / "x.csv", [{"image": "deep/1.jpg"}])
        storage.write_bytes(f"{tmp_path}/images/deep/1.jpg", b"i")
        assert read(path, images=f"{tmp_path}/images") == [Sample("x-00000/000000000", b"i")]

    def test_may_have_whole_paths(self, tmp_path: Path) -> None:
        path = write_list(tmp_path / "x.csv", [{"image": f"{tmp_path}/0.jpg"}])
        assert read(path, images="/nowhere") == [Sample("x-00000/000000000", b"0")]

    @pytest.mark.parametrize(
        "name",
        [".", "a\0b", "half \ud83d", ["a"], 7, "loop.jpg", "0.jpg/1.jpg", "x" * 300, "x/" * 3000, "socket"],
        ids=lambda name: ascii(name)[:24],
    )
    def test_that_no_file_can_be_are_rejects(self, tmp_path: Path, name: object) -> None:
        (tmp_path / "0.jpg").write_bytes(b"")
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(tmp_path / "socket"))
            (tmp_path / "x.jsonl").write_text(json.dumps({"image": name}))
            (bad,) = read(f"{tmp_path}/x.jsonl")
        assert isinstance(bad, Reject)

    def test_whose_protocol_is_no_text_are_rejects_that_can_be_stored(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "x.jsonl").write_text('{"image": "\\ud800\\u0000\\ud800://x.jpg"}\n{"image": ""}')
        source = TableSource(path=f"{tmp_path}/data/x.jsonl")
        bad, _ = support.read_source(source)
        assert "\\ud800\\x00\\ud800" in bad.message
        support.prove_accounted(source, tmp_path / "features", inputs=2)

    @pytest.mark.parametrize("uri", ["no-such-storage://x", "github://x/y", "package://none/x"])
    def test_that_no_uri_can_be_are_rejects(self, tmp_path: Path, uri: str) -> None:
        (bad,) = read(write_list(tmp_path / "x.csv", [{"image": uri}]))
        assert (bad.stage, bad.error) == ("read", "ImpossibleUriError")

    @pytest.mark.parametrize(
        "fault",
        [OSError(errno.EIO, "of the disk"), OSError(errno.EMFILE, "of the process"), PermissionError("refused")],
    )
    def test_that_storage_fails_to_give_end_the_reading(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
    ) -> None:
        source = TableSource(path=write_list(tmp_path / "x.csv", [{"image": "0.jpg"}, {"image": "1.jpg"}]))
        items = source.read(source.shards()[0])
        next(items)

        def failing(*_: object, **__: object) -> bytes:
            raise fault

        monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", failing)
        with pytest.raises(type(fault)):
            next(items)

    def test_that_are_no_plain_files_are_rejects(self, tmp_path: Path) -> None:
        # One has no end, and nobody will ever write into the other.
        os.mkfifo(tmp_path / "pipe")
        found = read(write_list(tmp_path / "x.csv", [{"image": "/dev/zero"}, {"image": "pipe"}]))
        assert [(bad.stage, bad.error) for bad in found] == [("read", "NoPlainFileError")] * 2

    def test_beyond_all_measure_are_rejects(self, tmp_path: Path) -> None:
        with (tmp_path / "hole.jpg").open("wb") as hole:
            hole.truncate(MAX_IMAGE_BYTES + 1)
        (bad,) = read(write_list(tmp_path / "x.csv", [{"image": "hole.jpg"}]))
        assert (bad.stage, bad.error) == ("read", "TooLargeError")

    def test_without_content_are_samples_of_no_bytes(self, tmp_path: Path) -> None:
        path = write_list(tmp_path / "x.csv", [{"image": "0.jpg"}])
        (tmp_path / "0.jpg").write_bytes(b"")
        assert read(path) == [Sample("x-00000/000000000", b"")]

    def test_of_an_object_store(self) -> None:
        try:
            storage.write_bytes("memory://table/x.csv", b"image,text\n1.jpg,one\n2.jpg,two\n")
            storage.write_bytes("memory://table/1.jpg", b"i")
            good, bad = read("memory://table/x.csv", rows_per_shard=1)
            assert good == Sample("x-00000/000000000", b"i", ("one",))
            assert (bad.key, bad.error) == ("x-00001/000000001", "FileNotFoundError")
        finally:
            storage.remove("memory://table")


class _Images(BaseHTTPRequestHandler):
    """A web server: `/200` is an image, other paths are the status that they name."""

    def do_GET(self) -> None:
        status = int(self.path[1:4])
        self.send_response(status)
        self.send_header("Content-Length", "1" if status == 200 else "0")
        self.end_headers()
        self.wfile.write(b"i" if status == 200 else b"")

    def log_message(self, *_: object) -> None:
        pass


def connections(server: socket.socket) -> int:
    """How many wait to be accepted."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


class TestImagesOfTheWeb:
    """Hosts that are dead are ports on which nothing listens."""

    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        monkeypatch.setattr("sharelock_ray.storage._URL_ATTEMPTS", 1)
        with ThreadingHTTPServer(("127.0.0.1", 0), _Images) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def results(self, folder: Path, *images: str, **options: object) -> list[str | None]:
        """For each row the name of its error, None for a sample."""
        (folder / "0.jpg").write_bytes(b"i")
        found = read(write_list(folder / "x.csv", [{"image": image} for image in images]), **options)
        return [item.error if isinstance(item, Reject) else None for item in found]

    @pytest.mark.parametrize(
        ("image", "error"),
        [
            ("http://127.0.0.1:9/1.jpg", "NoAnswerError"),
            ("http://no-such-host.invalid/1.jpg", "NoAnswerError"),
            ("http://127.0.0.1:99999/1.jpg", "ImpossibleUriError"),
            ("http:///1.jpg", "ImpossibleUriError"),
            ("gs://bucket/1.jpg", "RequestError"),
            ("hdfs://host/1.jpg", "RequestError"),
            ("generic://host/1.jpg", "ImpossibleUriError"),
        ],
    )
    def test_of_a_dead_host_or_an_impossible_protocol_are_rejects_beside_whole_rows(
        self, tmp_path: Path, server: str, image: str, error: str
    ) -> None:
        found = self.results(tmp_path, image, f"{server}/200", "0.jpg", image)
        assert found[1:3] == [None, None]
        assert found[0] == found[3]
        if error != "ImpossibleUriError":
            assert found[0] == error
        assert found[0] is not None
        # Also where it is alone in the last run of rows.
        assert self.results(tmp_path, f"{server}/200", "0.jpg", "0.jpg", image, rows_per_shard=3)[3] == found[0]

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (404, "FileNotFoundError"),
            (410, "ClientResponseError"),
            (403, "ClientResponseError"),
            (500, "ClientResponseError"),
        ],
    )
    def test_that_their_server_refuses_are_rejects_while_it_gives_others(
        self, tmp_path: Path, server: str, status: int, error: str
    ) -> None:
        found = self.results(tmp_path, f"{server}/{status}", f"{server}/200", f"{server}/200?again")
        assert found == [error, None, None]

    @pytest.mark.parametrize("status", [403, 500])
    def test_of_a_server_that_refuses_all_end_the_reading(self, tmp_path: Path, server: str, status: int) -> None:
        with pytest.raises(RunError, match=rf"x-00000/000000001: the image {server}/{status}\?a cannot be read"):
            self.results(tmp_path, "0.jpg", f"{server}/{status}?a", f"{server}/{status}?b", f"{server}/{status}?c")

    def test_of_one_host_that_is_down_end_the_reading(self, tmp_path: Path, server: str) -> None:
        images = [f"http://127.0.0.1:9/{i}.jpg" for i in range(3)]
        with pytest.raises(RunError, match=r"x-00000/000000001: the image http://127.0.0.1:9/0.jpg cannot be read"):
            self.results(tmp_path, f"{server}/200", *images)

    def test_of_many_hosts_that_are_all_down_end_the_reading(self, tmp_path: Path, server: str) -> None:
        images = [f"http://127.0.0.1:{port}/1.jpg" for port in (2, 3, 4, 5, 6)]
        with pytest.raises(RunError, match=r"x-00000/000000001: the image http://127.0.0.1:2/1.jpg cannot be read"):
            self.results(tmp_path, "0.jpg", *images)

    def test_of_a_host_that_never_answers_are_waited_for_once(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sharelock_ray.storage._URL_S", 1.0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            image = f"http://127.0.0.1:{silent.getsockname()[1]}/1.jpg"
            found = self.results(tmp_path, f"{server}/200", image, "0.jpg", f"{server}/200", *[image] * 2, "0.jpg")
            asked = connections(silent)
        assert found == [None, "NoAnswerError", None, None, "NoAnswerError", "NoAnswerError", None]
        assert asked == 1

    def test_are_asked_for_again_after_a_fault_that_passes(
        self, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sharelock_ray.storage._URL_ATTEMPTS", 3)
        statuses = iter([503, 429, 200])
        usual = _Images.do_GET

        def passing(self: _Images) -> None:
            self.path = f"/{next(statuses)}"
            usual(self)

        monkeypatch.setattr(_Images, "do_GET", passing)
        assert self.results(tmp_path, f"{server}/1.jpg") == [None]


class TestDamagedLists:
    def test_a_bad_line_is_one_reject(self, tmp_path: Path) -> None:
        (tmp_path / "0.jpg").write_bytes(b"0")
        (tmp_path / "x.jsonl").write_bytes(b'{"image": \n\n[1]\n{"image": "0.jpg", "text": "\xff"}\n{"image": "0.jpg"}')
        found = read(f"{tmp_path}/x.jsonl")
        assert [type(item) for item in found] == [Reject, Reject, Reject, Sample]

    def test_a_csv_row_that_is_no_utf8_is_one_reject(self, tmp_path: Path) -> None:
        (tmp_path / "0.jpg").write_bytes(b"0")
        (tmp_path / "x.csv").write_bytes(b"image,text\n0.jpg,\xff\n\n0.jpg,good\n")
        bad, good = read(f"{tmp_path}/x.csv")
        assert isinstance(bad, Reject)
        assert good == Sample("x-00000/000000001", b"0", ("good",))

    @pytest.mark.parametrize("separator", [",", "\t"])
    def test_a_row_of_more_or_fewer_fields_than_the_header_is_one_reject(self, tmp_path: Path, separator: str) -> None:
        path = tmp_path / ("x.csv" if separator == "," else "x.tsv")
        rows = [["image", "text"], ["0.jpg", "a dog", " a cat"], ["0.jpg"], ["0.jpg", "good"]]
        path.write_text("".join(f"{separator.join(row)}\n" for row in rows))
        (tmp_path / "0.jpg").write_bytes(b"0")
        more, fewer, good = read(str(path))
        assert (more.stage, more.error, more.message) == (
            "read",
            "ValueError",
            "the row has 3 fields, but the header has 2",
        )
        assert fewer.message == "the row has 1 fields, but the header has 2"
        assert good == Sample("x-00000/000000002", b"0", ("good",))

    @pytest.mark.parametrize("content", ['{"a": 1}', '[{"image": "a"}', '[{"image": "a"} {}]', "[nothing]"])
    def test_what_is_no_json_list_is_a_wrong_request(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(RequestError, match=r"x\.json cannot be read"):
            TableSource(path=f"{tmp_path}/x.json").shards()

    def test_a_csv_that_the_reader_refuses_is_a_wrong_request(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("image,text\n0.jpg,a\n" + "x" * 200_000)
        with pytest.raises(RequestError, match="cannot be read: the row that begins at line 3"):
            TableSource(path=f"{tmp_path}/x.csv").shards()

    def test_another_ending_is_a_wrong_request(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="must end in"):
            TableSource(path=f"{tmp_path}/x.xlsx").shards()
