"""The object store: under network and server faults, reads are correct, and writes are atomic."""

import io
import multiprocessing
import pickle
import random
import socket
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

import object_store
from object_store import ChaosProxy, Fault
from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError, SharelockError

PART = 5 << 20
SMALL, LARGE = random.Random(0).randbytes(1000), random.Random(1).randbytes(2 * PART + 12345)

FAULTS = ["slow_down", "error", "refused", "broken", "lost", "cut", "drip"]


@pytest.fixture(autouse=True)
def _small_parts(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_S3_PART_BYTES", str(PART))


@pytest.fixture
def uri(bucket: str) -> str:
    return storage.join(bucket, "folder", "object")


def place(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def stored(s3: Any, uri: str) -> bytes | None:
    """The object at `uri` as an independent client reads it; checks that no multipart upload is left."""
    bucket = place(uri)["Bucket"]
    assert not s3.list_multipart_uploads(Bucket=bucket).get("Uploads")
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert keys in ([], [place(uri)["Key"]])
    return s3.get_object(**place(uri))["Body"].read() if keys else None


def first(fault: Fault, times: int = 1, only: str = "") -> Callable[[str, str, int], Fault | None]:
    """Injects `fault` into the first `times` attempts of each request whose method and path contain `only`."""
    return lambda method, path, attempt: fault if attempt < times and only in f"{method} {path}" else None


def copied(uri: str) -> bytes:
    with storage.local_copy(uri) as path:
        return path.read_bytes()


def streamed(uri: str) -> bytes:
    with storage.open_read(uri) as stream:
        return b"".join(iter(lambda: stream.read(1 << 20), b""))


class TestReading:
    @pytest.mark.parametrize(
        ("read", "fault"),
        [*((storage.read_bytes, fault) for fault in FAULTS), (copied, "cut"), (copied, "lost"), (streamed, "cut")],
    )
    def test_every_fault_is_survived(
        self, read: Callable[[str], bytes], fault: Fault, uri: str, chaos: ChaosProxy, s3: Any
    ) -> None:
        s3.put_object(**place(uri), Body=LARGE)
        chaos.choose = lambda method, path, attempt: fault if attempt == 0 and len(chaos.spoilt) < 6 else None
        assert read(uri) == LARGE
        assert len(chaos.spoilt) >= 3

    def test_resumes_at_the_byte_where_the_connection_broke(self, uri: str, chaos: ChaosProxy, s3: Any) -> None:
        s3.put_object(**place(uri), Body=LARGE)
        chaos.choose = first("cut")
        assert storage.read_bytes(uri, 100, 1100) == LARGE[100:1100]
        # Each answer is cut in half, and the rest is requested again, down to one byte.
        ranges = [path.rpartition("bytes=")[2] for _, path in chaos.requests]
        assert ranges[:3] == ["100-1099", "600-1099", "850-1099"]
        assert len(ranges) > 5

    def test_more_interruptions_than_attempts_are_survived_with_progress(
        self, uri: str, chaos: ChaosProxy, s3: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHARELOCK_S3_ATTEMPTS", "2")
        s3.put_object(**place(uri), Body=SMALL)
        chaos.choose = lambda method, path, attempt: "cut" if len(chaos.spoilt) < 7 else None
        assert storage.read_bytes(uri) == SMALL
        assert len(chaos.spoilt) == 7

    @pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1])
    def test_objects_of_any_size(self, size: int, uri: str, s3: Any) -> None:
        s3.put_object(**place(uri), Body=LARGE[:size])
        assert storage.read_bytes(uri) == copied(uri) == streamed(uri) == LARGE[:size]
        assert storage.sha256_of(uri) == storage.sha256(LARGE[:size])

    def test_ranges_follow_python_slices(self, uri: str, s3: Any) -> None:
        s3.put_object(**place(uri), Body=LARGE)
        end = len(LARGE)
        spans = [(0, 0), (5, 5), (0, 1), (10, PART + 20), (None, 10), (PART, None), (end - 1, None), (900, 2 * end)]
        for span in spans:
            assert storage.read_bytes(uri, *span) == LARGE[slice(*span)]

    def test_a_range_behind_the_end_is_empty(self, uri: str, s3: Any) -> None:
        s3.put_object(**place(uri), Body=SMALL)
        assert storage.read_bytes(uri, 2000, 3000) == b""

    def test_a_stream_seeks_and_reads_like_a_file(self, uri: str, chaos: ChaosProxy, s3: Any) -> None:
        s3.put_object(**place(uri), Body=LARGE)
        chaos.choose = object_store.seeded(0, {"cut": 0.1, "refused": 0.1})
        draw = random.Random(0)
        with storage.open_read(uri) as stream:
            memory = io.BytesIO(LARGE)
            for _ in range(5):
                offset, length = draw.randrange(len(LARGE)), draw.choice([0, 1, 500, 1 << 20])
                whence = draw.choice([io.SEEK_SET, io.SEEK_END])
                offset -= len(LARGE) if whence == io.SEEK_END else 0
                assert stream.seek(offset, whence) == memory.seek(offset, whence)
                assert stream.read(length) == memory.read(length)
                assert stream.tell() == memory.tell()
            assert stream.read() == memory.read()
            assert stream.read(1) == b""

    @pytest.mark.parametrize("read", [storage.read_bytes, copied, streamed])
    def test_an_object_that_is_replaced_during_the_read_is_an_error(
        self, read: Callable[[str], bytes], uri: str, chaos: ChaosProxy, s3: Any
    ) -> None:
        s3.put_object(**place(uri), Body=LARGE)

        def replace(method: str, path: str, attempt: int) -> Fault | None:
            if sum(chaos.requests[each] for each in chaos.requests if each[0] == "GET") == 1:
                s3.put_object(**place(uri), Body=bytes(len(LARGE)))
            return None

        chaos.choose = replace
        with pytest.raises(RunError, match=rf"^{uri} was replaced while it was read"):
            read(uri)

    def test_a_missing_object_is_an_error_without_retries(self, uri: str, chaos: ChaosProxy) -> None:
        for read in (storage.read_bytes, copied, streamed):
            with pytest.raises(FileNotFoundError, match="folder/object"):
                read(uri)
        assert max(chaos.requests.values()) <= 3


@pytest.mark.parametrize(
    ("data", "fault"),
    [*((SMALL, fault) for fault in FAULTS), *((LARGE, fault) for fault in ("slow_down", "broken", "lost"))],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_write_survives_every_fault(data: bytes, fault: Fault, uri: str, chaos: ChaosProxy, s3: Any) -> None:
    chaos.choose = first(fault)
    assert storage.create_bytes(uri, data)
    assert stored(s3, uri) == data
    storage.write_bytes(uri, data[::-1])
    assert stored(s3, uri) == data[::-1]
    assert chaos.spoilt


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["one put", "parts"])
class TestWriting:
    def test_a_creation_whose_answer_was_lost_recognises_its_object(
        self, data: bytes, uri: str, chaos: ChaosProxy, s3: Any
    ) -> None:
        # The last request (put or completion) succeeded; its retry finds the object.
        chaos.choose = first("lost", 2, only="POST" if data is LARGE else "PUT")
        assert storage.create_bytes(uri, data)
        assert stored(s3, uri) == data

    def test_a_creation_does_not_recognise_equal_content_of_another_writer(
        self, data: bytes, uri: str, chaos: ChaosProxy, s3: Any
    ) -> None:
        assert storage.create_bytes(uri, data)
        chaos.choose = first("lost")
        assert not storage.create_bytes(uri, data)
        assert stored(s3, uri) == data

    def test_one_of_several_concurrent_writers_wins(self, data: bytes, uri: str, chaos: ChaosProxy, s3: Any) -> None:
        chaos.choose = object_store.seeded(0, {"lost": 0.2, "slow_down": 0.2})
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda i: storage.create_bytes(uri, b"%d" % i + data), range(4)))
        assert sum(won) == 1
        assert stored(s3, uri) == b"%d" % won.index(True) + data

    def test_waits_for_a_conflicting_writer(self, data: bytes, uri: str, chaos: ChaosProxy, s3: Any) -> None:
        last = "POST" if data is LARGE else "PUT"
        chaos.choose = lambda method, path, attempt: (
            "conflict" if method == last and "uploads" not in path and not chaos.spoilt else None
        )
        assert storage.create_bytes(uri, data)
        assert stored(s3, uri) == data
        assert len(chaos.spoilt) == 1

    @pytest.mark.parametrize("before", [None, b"old"])
    def test_a_connection_that_always_breaks_writes_nothing(
        self, data: bytes, before: bytes | None, uri: str, chaos: ChaosProxy, s3: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHARELOCK_S3_ATTEMPTS", "2")
        if before:
            s3.put_object(**place(uri), Body=before)
        chaos.choose = first("broken", times=1000, only="PUT")
        with pytest.raises(RunError, match=rf"^{uri}: .* after 2 attempts .*: run the same command again to continue$"):
            storage.write_bytes(uri, data)
        assert stored(s3, uri) == before


class TestWritingParts:
    def test_an_exception_during_the_upload_leaves_nothing(self, uri: str, s3: Any) -> None:
        class Body(bytes):
            def __getitem__(self, index: Any) -> Any:
                if index.start >= PART:
                    raise MemoryError("no room for the next part")
                return super().__getitem__(index)

        with pytest.raises(MemoryError):
            storage.write_bytes(uri, Body(LARGE))
        assert stored(s3, uri) is None

    def test_an_upload_aborted_by_another_process_starts_again(self, uri: str, chaos: ChaosProxy, s3: Any) -> None:
        chaos.choose = lambda method, path, attempt: "gone" if "partNumber=2" in path and not chaos.spoilt else None
        storage.write_bytes(uri, LARGE)
        assert stored(s3, uri) == LARGE
        assert len(chaos.spoilt) == 1

    @pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
    def test_a_completion_whose_answer_was_lost_recognises_its_object(
        self, write: Callable[[str, bytes], object], uri: str, chaos: ChaosProxy, s3: Any
    ) -> None:
        answers = ["lost", "gone"]
        chaos.choose = lambda method, path, attempt: (
            answers.pop(0) if method == "POST" and "uploadId" in path and answers else None
        )
        assert write(uri, LARGE) in (True, None)
        assert stored(s3, uri) == LARGE
        assert sum(count for (method, _), count in chaos.requests.items() if method == "PUT") == 3

    def test_the_etag_counts_the_parts(self, uri: str, s3: Any) -> None:
        storage.write_bytes(uri, LARGE)
        assert s3.head_object(**place(uri))["ETag"].strip('"').endswith("-3")


def test_writes_wait_until_the_store_accepts_requests_again(bucket: str, chaos: ChaosProxy) -> None:
    began: list[float] = []

    def storm(method: str, path: str, attempt: int) -> Fault | None:
        began.append(time.monotonic())
        return "slow_down" if time.monotonic() < began[0] + 1 else None

    chaos.choose = storm
    names = [f"{i:02d}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(storage.join(bucket, name), name.encode()), names))
    assert storage.names(bucket) == names
    assert chaos.spoilt


class TestRemoving:
    def test_objects_that_the_store_failed_to_remove_are_retried(self, bucket: str, chaos: ChaosProxy) -> None:
        for name in "ab":
            storage.write_bytes(storage.join(bucket, "folder", name), b"")
        chaos.choose = first("half_removed", only="POST")
        storage.remove(storage.join(bucket, "folder"))
        assert storage.names(bucket) == []
        assert chaos.spoilt

    def test_a_forbidden_removal_is_an_error(self, uri: str, chaos: ChaosProxy) -> None:
        storage.write_bytes(uri, b"")
        chaos.choose = first("kept", only="POST")
        with pytest.raises(RequestError, match=r"rejects the request \(AccessDenied\)"):
            storage.remove(uri)

    def test_a_lost_answer_is_not_an_error(self, uri: str, chaos: ChaosProxy) -> None:
        storage.write_bytes(uri, b"")
        chaos.choose = first("lost")
        storage.remove(uri)
        assert not storage.exists(uri)


OPERATIONS: list[Callable[[str], object]] = [
    storage.exists,
    storage.size,
    storage.read_bytes,
    copied,
    storage.open_read,
    storage.names,
    storage.entries,
    storage.remove,
    lambda uri: storage.expand(f"{uri}/*.tar"),
    lambda uri: storage.write_bytes(uri, SMALL),
    lambda uri: storage.write_bytes(uri, LARGE),
    lambda uri: storage.create_bytes(uri, SMALL),
]


def refusal(operation: Callable[[str], object], uri: str) -> str:
    """The one-line error of an invalid request."""
    with pytest.raises(RequestError) as caught:
        operation(uri)
    line = str(caught.value)
    assert line.startswith(uri)
    assert "\n" not in line
    return line


@pytest.mark.timeout(30)
class TestInvalidRequests:
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_a_missing_bucket(self, operation: Callable[[str], object], chaos: ChaosProxy) -> None:
        assert "no such bucket at http://127.0.0.1" in refusal(operation, "s3://nobody-has-this-bucket/a")
        assert max(chaos.requests.values()) == 1

    def test_existence_of_a_bucket(self, bucket: str) -> None:
        assert storage.exists(bucket)
        assert not storage.exists("s3://nobody-has-this-bucket")

    def test_an_invalid_bucket_name(self, s3_environment: None) -> None:
        assert "does not allow this name" in refusal(storage.read_bytes, "s3://no bucket/a")

    def test_an_endpoint_without_a_server(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
            assert "check AWS_ENDPOINT_URL and the network" in refusal(storage.exists, bucket)

    def test_an_endpoint_that_is_not_a_url(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "store")
        assert "Invalid endpoint: store: check the AWS_* variables" in refusal(storage.exists, uri)

    def test_missing_credentials(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "no credentials" in refusal(storage.exists, uri)

    def test_a_missing_profile(self, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        assert "profile (nobody) could not be found" in refusal(storage.exists, uri)

    def test_unknown_credentials(self, uri: str, chaos: ChaosProxy, s3_server: str) -> None:
        def check_credentials(after: str) -> None:
            where, plain = f"{s3_server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
            urllib.request.urlopen(urllib.request.Request(where, after.encode(), plain)).close()

        check_credentials("0")
        try:
            assert "rejects the request" in refusal(storage.read_bytes, uri)
        finally:
            check_credentials("inf")
        assert max(chaos.requests.values()) == 1

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_expired_credentials(self, operation: Callable[[str], object], uri: str, chaos: ChaosProxy) -> None:
        chaos.choose = lambda method, path, attempt: "expired"
        assert "the credentials have most likely expired: renew them" in refusal(operation, uri)
        assert max(chaos.requests.values()) == 1

    def test_credentials_in_the_endpoint_are_not_shown(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://somebody:secret@{place}")
            monkeypatch.setenv("SHARELOCK_S3_ATTEMPTS", "1")
            with pytest.raises(SharelockError, match=f"at http://{place} ") as caught:
                storage.exists(bucket)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("variable", "value"),
        [("SHARELOCK_S3_PART_BYTES", "1000"), ("SHARELOCK_S3_PART_BYTES", "16 MB"), ("SHARELOCK_S3_ATTEMPTS", "0")],
    )
    def test_an_invalid_setting(self, variable: str, value: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, value)
        with pytest.raises(RequestError, match=rf"^{variable} is '{value}': give a whole number, at least \d+$"):
            storage.exists(uri)


def test_a_store_that_stops_answering_is_a_run_error(s3_server: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_S3_ATTEMPTS", "3")
    with ChaosProxy(s3_server).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.write_bytes(uri, b"")
    with pytest.raises(RunError, match=rf"^{uri}: .* fails after 3 attempts"):
        storage.read_bytes(uri)


def test_a_store_cannot_be_opened_for_writing(uri: str) -> None:
    filesystem, path = storage.resolve(uri)
    with pytest.raises(io.UnsupportedOperation, match="write atomically"):
        filesystem.open(path, "wb")


@pytest.mark.parametrize(
    ("setting", "url"),
    [("", "http://store.example:9000/bucket-b/a?"), ("virtual", "http://bucket-b.store.example:9000/a?")],
)
def test_a_bucket_is_part_of_the_path_unless_the_profile_says_otherwise(
    setting: str, url: str, s3_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {setting}\n" if setting else "")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    filesystem, path = storage.resolve("s3://bucket-b/a")
    assert filesystem.url(path).startswith(url)


def test_the_configuration_of_fsspec_is_ignored(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As environment variables such as FSSPEC_S3_ENDPOINT_URL would.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9", "anon": "true"})
    storage.write_bytes(uri, SMALL)
    assert storage.read_bytes(uri) == SMALL


def test_a_pickled_filesystem_contains_no_credentials(uri: str) -> None:
    filesystem, path = storage.resolve(uri)
    filesystem.pipe_file(path, b"content")
    carried = pickle.dumps(filesystem)
    assert b"of-the-tests" not in carried
    assert "of-the-tests" not in repr(vars(filesystem))
    assert pickle.loads(carried).cat_file(path) == b"content"


def test_a_forked_process_opens_its_own_connection(uri: str) -> None:
    storage.write_bytes(uri, LARGE)
    child = multiprocessing.get_context("fork").Process(target=_compare, args=(uri,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert storage.read_bytes(uri) == LARGE


def _compare(uri: str) -> None:
    assert storage.read_bytes(uri) == LARGE
