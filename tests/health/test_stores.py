"""The storage of an output, on a local disk and an S3 server; each check is broken once."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from object_store import ChaosProxy
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.health.stores import (
    Nonce,
    probe_folder,
    shared_output,
    skew,
    store_access,
    store_clock,
    store_speed,
    write_nonce,
)


class TestProbeFolder:
    def test_nothing_is_left(self, tmp_path: Path) -> None:
        with probe_folder(str(tmp_path / "runs" / "mine")) as folder:
            write_nonce(folder)
            assert storage.names(folder) == ["nonce"]
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_exists_stays(self, tmp_path: Path) -> None:
        (tmp_path / "report.html").touch()
        with probe_folder(str(tmp_path)) as folder:
            write_nonce(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_an_output_that_cannot_be_written_is_no_other_error(self) -> None:
        with pytest.raises(RequestError, match="cannot be written"), probe_folder("/proc/none") as folder:
            write_nonce(folder)


class TestSharedOutput:
    def test_a_node_that_reads_the_nonce_shares_the_output(self, tmp_path: Path) -> None:
        with probe_folder(str(tmp_path)) as folder:
            check = shared_output(write_nonce(folder))
        assert (check.state, check.found) == ("ok", str(tmp_path))

    def test_a_node_with_a_disk_of_its_own_fails(self, tmp_path: Path) -> None:
        check = shared_output(Nonce(f"{tmp_path}/.doctor-1/nonce", "of the driver"))
        assert check.state == "fail"
        assert check.found == f"this node does not see what the driver wrote to {tmp_path}"
        assert "all nodes mount" in check.remedy

    def test_other_content_is_another_disk(self, tmp_path: Path) -> None:
        nonce = Nonce(str(tmp_path / "nonce"), "of the driver")
        storage.write_bytes(nonce.uri, b"of another")
        assert shared_output(nonce).state == "fail"

    def test_a_folder_without_access_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert shared_output(Nonce("unheard-of://bucket/.doctor-1/nonce", "x")).state == "fail"


class TestStore:
    @pytest.fixture(params=["disk", "s3"])
    def folder(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
        return storage.join(root, "probe")

    def test_a_store_that_works_is_ok_and_left_empty(self, folder: str) -> None:
        checks = [check(folder) for check in (store_access, store_speed, store_clock)]
        assert [(each.name, each.remedy) for each in checks if each.state == "fail"] == []
        assert checks[0].state == checks[2].state == "ok"
        assert "MB/s" in checks[1].found
        assert storage.names(folder) == []

    def test_a_request_that_the_store_denies_fails(self, chaos: ChaosProxy, bucket: str) -> None:
        chaos.choose = lambda method, path, attempt: "denied" if method == "DELETE" or "delete" in path else None
        check = store_access(f"{bucket}/probe")
        assert check.state == "fail"
        assert "(AccessDenied)" in check.found
        assert "read, write, list and delete" in check.remedy

    def test_a_store_without_conditional_writes_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def overwrite(uri: str, data: bytes) -> bool:
            storage.write_bytes(uri, data)
            return True

        monkeypatch.setattr(storage, "create_bytes", overwrite)
        check = store_access(str(tmp_path))
        assert check.state == "fail"
        assert "If-None-Match" in check.found

    def test_a_disk_without_hard_links_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        assert "Operation not permitted" in store_access(str(tmp_path)).found

    def test_other_bytes_or_a_removal_without_effect_fail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "remove", lambda uri: None)
            assert store_access(str(tmp_path)).found == "a removed object is still there"
        monkeypatch.setattr(storage, "read_bytes", lambda uri: b"")
        assert store_access(str(tmp_path)).found == "an object is not read as it was written"

    def test_a_place_that_cannot_be_written_fails_every_check(self) -> None:
        for check in (store_access, store_speed, store_clock):
            assert check("/proc/none").state == "fail"

    def test_a_slow_store_warns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seconds = iter([0.0, 8.0, 8.1])
        monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
        check = store_speed(str(tmp_path))
        assert (check.state, check.found) == ("warn", "one write at 1 MB/s, one read at 84 MB/s")

    @pytest.mark.parametrize(("age", "state"), [(-60.0, "warn"), (60.0, "warn"), (-600.0, "fail"), (0.5, "ok")])
    def test_another_clock_is_said(
        self, age: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "age", lambda uri: age)
        assert store_clock(str(tmp_path)).state == state


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (5, "ok"), (6, "warn"), (300, "warn"), (301, "fail")])
def test_clocks_apart_are_graded(seconds: float, state: str) -> None:
    assert skew("clock", "the driver", seconds).state == state


def test_the_s3_server_of_a_bucket_that_is_missing_is_named(s3_environment: None, s3: Any) -> None:
    assert "no such bucket" in store_access("s3://missing/probe").found
