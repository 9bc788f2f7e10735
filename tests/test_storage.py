"""Storage: the same functions for local disks, packages and object stores; writes are atomic."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sharelock_ray
from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError

# The kernel limits the process's files to 64 KiB, which stands for a full disk.
WRITE_TOO_MUCH = """
import resource, signal, sys
from sharelock_ray import storage
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if sys.argv[2] == "killed" else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
storage.write_bytes(sys.argv[1], bytes(1 << 20))
"""
COPY_AND_DIE = """
import os, signal, sys, tempfile
from sharelock_ray import storage
tempfile.tempdir = sys.argv[1]
storage.write_bytes("memory://a.tar", bytes(1 << 20))
with storage.local_copy("memory://a.tar") as path:
    assert path.stat().st_size == 1 << 20
    os.kill(os.getpid(), signal.SIGKILL)
"""
WITHOUT_A_FOLDER = """
import os, sys
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
root = sys.argv[1]
os.makedirs(f"{root}/gone")
os.chdir(f"{root}/gone")
os.rmdir(f"{root}/gone")
storage.write_bytes(f"{root}/folder/a", b"1")
storage.write_bytes(f"{root}/file", b"1")
assert storage.expand(f"{root}/f*") == [f"{root}/file", f"{root}/folder"]
with storage.local_copy(f"{root}/file") as path:
    assert path.read_bytes() == b"1"
for name in ("folder", "file", "nothing"):
    storage.remove(f"{root}/{name}")
    assert not storage.exists(f"{root}/{name}")
try:
    storage.absolute("relative")
except RequestError as error:
    print(error)
"""


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on each kind of filesystem."""
    if request.param == "local":
        yield str(tmp_path / "root")
    elif request.param == "s3":
        yield storage.join(request.getfixturevalue("bucket"), "root")
    else:
        yield "memory://storage-test"
        storage.remove("memory://storage-test")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


class TestEveryFilesystem:
    def test_reads_what_was_written(self, root: str) -> None:
        uri = storage.join(root, "a", "b.bin")
        assert not storage.exists(uri)
        storage.write_bytes(uri, b"first")
        storage.write_bytes(uri, b"second")
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == b"second"
        assert storage.size(uri) == 6
        with storage.open_read(uri) as stream:
            assert stream.read() == b"second"

    def test_a_local_copy_reads_like_a_file(self, root: str) -> None:
        uri = storage.join(root, "a.bin")
        storage.write_bytes(uri, b"content")
        with storage.local_copy(uri) as path:
            assert path.read_bytes() == path.read_bytes() == b"content"
            assert path.stat().st_size == 7
            assert storage.sha256_of(str(path)) == storage.sha256(b"content")
            assert pa.memory_map(str(path)).read() == b"content"
        assert storage.read_bytes(uri) == b"content"

    def test_json_keeps_unicode(self, root: str) -> None:
        uri = storage.join(root, "a.json")
        storage.write_json(uri, {"straße": [1, None, "猫"]})
        assert storage.read_json(uri) == {"straße": [1, None, "猫"]}
        assert "猫" in storage.read_bytes(uri).decode()

    def test_names_are_sorted_and_direct(self, root: str) -> None:
        for name in ("c", "a", "folder/inside", "b"):
            storage.write_bytes(storage.join(root, *name.split("/")), b"")
        assert storage.names(root) == ["a", "b", "c", "folder"]
        assert storage.is_folder(storage.join(root, "folder"))
        assert not storage.is_folder(storage.join(root, "a"))

    def test_a_missing_folder_has_no_names(self, root: str) -> None:
        assert storage.names(storage.join(root, "nothing")) == []

    def test_removes_files_and_folders_and_ignores_missing_ones(self, root: str) -> None:
        for name in ("kept", "gone", "folder/x", "folder/y", "folder.json"):
            storage.write_bytes(storage.join(root, *name.split("/")), b"1")
        for name in ("gone", "folder", "never"):
            storage.remove(storage.join(root, name))
        assert storage.names(root) == ["folder.json", "kept"]

    def test_removal_does_not_treat_a_name_as_a_pattern(self, root: str) -> None:
        for name in ("[ab]*/deep/1", "a/deep/1", "b1"):
            storage.write_bytes(storage.join(root, name), b"")
        storage.remove(storage.join(root, "[ab]*"))
        assert storage.names(root) == ["a", "b1"]
        storage.remove(storage.join(root, "b?"))
        assert storage.names(root) == ["a", "b1"]

    def test_hashes_as_hashlib_does(self, root: str) -> None:
        uri = storage.join(root, "large")
        data = bytes(range(256)) * 10_000  # Longer than one block of the stream.
        storage.write_bytes(uri, data)
        assert storage.sha256_of(uri) == storage.sha256(data) == hashlib.sha256(data).hexdigest()

    def test_reading_a_missing_object_is_an_error(self, root: str) -> None:
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(storage.join(root, "nothing"))

    def test_wildcards_expand_to_readable_uris(self, root: str) -> None:
        for name in ("b.tar", "a.tar", "c.txt"):
            storage.write_bytes(storage.join(root, name), name.encode())
        found = storage.expand(storage.join(root, "*.tar"))
        assert [storage.read_bytes(uri) for uri in found] == [b"a.tar", b"b.tar"]


class TestLocalFiles:
    def test_a_failed_write_leaves_the_old_content_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        run = subprocess.run(
            [sys.executable, "-c", WRITE_TOO_MUCH, str(path), "failed"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert f"RunError: {path} cannot be written (File too large): free space on that disk" in run.stderr
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_killed_write_leaves_the_old_content_and_a_hidden_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        run = subprocess.run([sys.executable, "-c", WRITE_TOO_MUCH, str(path), "killed"], check=False)
        assert run.returncode < 0
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2
        assert storage.names(str(tmp_path)) == ["file"]

    @pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
    def test_a_path_that_is_not_writable_is_an_invalid_request(
        self, write: Callable[[str, bytes], object], tmp_path: Path
    ) -> None:
        touch(tmp_path, "file")
        for place, reason in [
            (tmp_path / "file" / "a", "File exists"),
            (tmp_path / "file" / "folder" / "a", "Not a directory"),
            (Path("/proc/nope/a"), "No such file or directory"),
            (tmp_path / ("long" * 100), "File name too long"),
        ]:
            with pytest.raises(RequestError, match=rf"^{place} cannot be written \({reason}\): check the path"):
                write(str(place), b"")
        with pytest.raises(RequestError, match="Is a directory"):
            storage.write_bytes(str(tmp_path), b"")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (FileNotFoundError(), "no recipe at a.yaml: check the path"),
            (IsADirectoryError(), "no recipe at a.yaml: check the path"),
            (NotADirectoryError(), "no recipe at a.yaml: check the path"),
            (PermissionError(), "no permission to read a.yaml: check its access rights"),
        ],
        ids=repr,
    )
    def test_a_path_that_cannot_be_read_is_an_invalid_request(self, fault: OSError, message: str) -> None:
        with pytest.raises(RequestError, match=f"^{re.escape(message)}$"), storage.reading("a.yaml", "recipe"):
            raise fault

    def test_a_path_below_a_file_does_not_exist(self, tmp_path: Path) -> None:
        touch(tmp_path, "file")
        below = str(tmp_path / "file" / "a")
        assert not storage.exists(below)
        assert storage.names(below) == []
        with pytest.raises(FileNotFoundError, match="a part of its path is a file"):
            storage.read_bytes(below)

    def test_removal_of_a_folder_that_is_refilled_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "_PAUSE_S", 0.001)
        touch(tmp_path, "folder/a")
        removed = os.rmdir

        def refill(path: str, **options: Any) -> None:
            touch(tmp_path, "folder/b")
            removed(path, **options)

        monkeypatch.setattr(os, "rmdir", refill)
        with pytest.raises(RequestError, match=r"folder cannot be removed \(Directory not empty\)"):
            storage.remove(str(tmp_path / "folder"))

    def test_unfinished_files_are_removed_and_concurrent_writes_succeed(self, tmp_path: Path) -> None:
        (tmp_path / ".tmp-killed").write_bytes(b"half")
        with ThreadPoolExecutor(3) as pool:
            writes = [
                pool.submit(write, str(tmp_path / f"{i}"), b"%d" % i)
                for i in range(100)
                for write in (storage.write_bytes, storage.create_bytes)
            ]
            for _ in range(15):
                storage.remove_unfinished(str(tmp_path))
                time.sleep(0.005)
        for write in writes:
            write.result()
        storage.remove_unfinished(str(tmp_path))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {f"{i}": b"%d" % i for i in range(100)}

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
    @pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
    def test_permissions_follow_the_umask(
        self, write: Callable[[str, bytes], object], umask: int, mode: int, tmp_path: Path
    ) -> None:
        before = os.umask(umask)
        try:
            write(str(tmp_path / "folder" / "file"), b"")
        finally:
            os.umask(before)
        assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == mode
        assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask

    def test_absolute_paths_work_after_the_working_folder_was_deleted(self, tmp_path: Path) -> None:
        run = subprocess.run(
            [sys.executable, "-c", WITHOUT_A_FOLDER, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(Path(sharelock_ray.__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert run.stdout.startswith("relative is relative to the working folder of this process, which was deleted")

    def test_the_working_folder_itself_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "here/a")
        monkeypatch.chdir(tmp_path / "here")
        storage.remove(str(tmp_path / "here"))
        assert list(tmp_path.iterdir()) == []

    def test_a_link_is_removed_without_its_target(self, tmp_path: Path) -> None:
        touch(tmp_path, "folder/a")
        (tmp_path / "link").symlink_to(tmp_path / "folder")
        storage.remove(str(tmp_path / "link"))
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        assert storage.names(str(tmp_path / "folder")) == ["a"]

    def test_a_concurrent_removal_is_not_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "folder/a", "folder/b")
        unlink = os.unlink

        def unlink_second(path: str, **options: Any) -> None:
            unlink(path, **options)
            raise FileNotFoundError(path)

        monkeypatch.setattr(os, "unlink", unlink_second)
        storage.remove(str(tmp_path / "folder"))
        assert list(tmp_path.iterdir()) == []


def test_a_killed_reader_leaves_no_local_copy(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", COPY_AND_DIE, str(tmp_path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


class TestExpand:
    @pytest.mark.parametrize(
        ("pattern", "uris"),
        [
            ("s3://b/x.tar", ["s3://b/x.tar"]),
            ("s3://b/{a,b}.tar", ["s3://b/a.tar", "s3://b/b.tar"]),
            ("{000..003}", ["000", "001", "002", "003"]),
            ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
            ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ],
    )
    def test_braces_expand_without_checking_for_existence(self, pattern: str, uris: list[str]) -> None:
        assert storage.expand(pattern) == uris

    def test_wildcards_match_existing_files_only(self, tmp_path: Path) -> None:
        touch(tmp_path, "b/1.tar", "a/1.tar", "a/2.tar", "a/10.txt", "c/1.tar")
        found = storage.expand(f"{tmp_path}/{{a,b}}/?.tar")
        assert found == [f"{tmp_path}/{name}" for name in ("a/1.tar", "a/2.tar", "b/1.tar")]
        assert storage.expand(f"{tmp_path}/[ac]/1.*") == [f"{tmp_path}/a/1.tar", f"{tmp_path}/c/1.tar"]
        assert storage.expand(f"{tmp_path}/*.zip") == []

    @pytest.mark.parametrize(
        "pattern", ["{0..99999999}.tar", "{0..999}{0..9999}", "{{0,1}..{5,99999999}}", "{1..%s}" % ("9" * 5000)]
    )
    def test_braces_with_millions_of_files_are_an_invalid_request(self, pattern: str) -> None:
        started = time.monotonic()
        with pytest.raises(RequestError, match="name more than 1,000,000 files: check their numbers"):
            storage.expand(pattern)
        assert time.monotonic() - started < 1

    def test_an_escaped_name_matches_only_itself(self, root: str) -> None:
        odd, other = storage.join(root, "[a]{b,c}*?}x"), storage.join(root, "ab")
        for folder in (odd, other):
            storage.write_bytes(storage.join(folder, "1.tar"), folder.encode())
        pattern = f"{storage.escape(odd)}/*.tar"
        assert [storage.read_bytes(uri) for uri in storage.expand(pattern)] == [odd.encode()]
        assert storage.folder_of(pattern) == odd


class TestPackages:
    def test_reads_a_file_in_a_package(self) -> None:
        uri = "package://sharelock_ray/errors.py"
        assert storage.read_bytes(uri) == (Path(sharelock_ray.__file__).parent / "errors.py").read_bytes()
        assert "errors.py" in storage.names("package://sharelock_ray")
        assert storage.is_local(uri)

    @pytest.mark.parametrize("name", ["no_such_package_at_all", "json.decoder"])
    def test_an_unknown_package_is_an_invalid_request(self, name: str) -> None:
        with pytest.raises(RequestError, match=f"no Python package '{name}'"):
            storage.read_bytes(f"package://{name}/file")

    @pytest.mark.parametrize("name", ["no_such_package_at_all.inside", ""])
    def test_an_invalid_package_name_is_an_invalid_request(self, name: str) -> None:
        with pytest.raises(RequestError, match="no Python package"):
            storage.read_bytes(f"package://{name}/file")


def test_an_unknown_protocol_is_an_invalid_request() -> None:
    with pytest.raises(RequestError, match=r"^nosuch:// is not a storage"):
        storage.exists("nosuch://bucket/file")


@pytest.mark.parametrize("uri", ["/data/x", "x", "file:///data/x"])
def test_local_uris_become_absolute_paths(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute(uri) == (str(tmp_path / "x") if uri == "x" else "/data/x")


@pytest.mark.parametrize("uri", ["s3://bucket/x", "package://json/x", "memory://x"])
def test_other_uris_are_unchanged(uri: str) -> None:
    assert storage.absolute(uri) == uri


def test_join_appends_parts_to_any_root() -> None:
    assert storage.join("s3://b/", "a", "c") == "s3://b/a/c"
    assert storage.join("relative", "a") == "relative/a"
    assert os.path.normpath(storage.join("/", "a")).lstrip("/") == "a"


def test_a_damaged_json_file_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "half.json")
    with pytest.raises(RunError, match=r"half\.json is damaged \(Expecting value: .*\): restore it, or delete it"):
        storage.read_json(str(tmp_path / "half.json"))


class TestCreate:
    def test_does_not_replace_an_existing_object(self, root: str) -> None:
        uri = storage.join(root, "folder", "object")
        assert storage.create_bytes(uri, b"first")
        assert not storage.create_bytes(uri, b"second")
        assert storage.read_bytes(uri) == b"first"
        assert storage.names(uri.rpartition("/")[0]) == ["object"]

    def test_one_of_several_concurrent_writers_wins(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "object")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i: storage.create_bytes(uri, b"%d" % i), range(32)))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == b"%d" % won.index(True)
        assert [path.name for path in tmp_path.iterdir()] == ["object"]
