"""The connection to Ray: its listening addresses, its clean-up and its messages."""

import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import AuthenticationError

import support
from sharelock_ray.engine import cluster
from sharelock_ray.errors import RequestError, RunError


def listening() -> dict[str, str]:
    """Listening addresses of this process and its children, with the process names."""
    me = psutil.Process()
    found: dict[str, str] = {}
    for process in (me, *me.children(recursive=True)):
        # A child may end at any moment.
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            listens = (one.laddr for one in connections if one.status == psutil.CONN_LISTEN)
            found |= {f"{at.ip}:{at.port}": process.name() for at in listens}
    return found


@pytest.mark.usefixtures("local_ray")
def test_a_local_instance_listens_on_the_loopback_interface_only() -> None:
    found = listening()
    assert len(found) > 5
    assert {at: who for at, who in found.items() if not at.startswith(("127.", "::ffff:127.", "::1:"))} == {}


HOST = """
import importlib.util, os, stat, sys
from pathlib import Path
from ray.data import DataContext
import ray

before, context = dict(os.environ), repr(DataContext.get_current())
from sharelock_ray.engine import cluster
from sharelock_ray.engine.stream import stream_of

assert dict(os.environ) == before
os.umask(0o077)

@ray.remote
def path():
    return sys.path, os.getcwd(), importlib.util.find_spec("torch").origin

with cluster.connected():
    (folder,) = Path(sys.argv[1]).glob("sharelock-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ["RAY_AUTH_TOKEN"] not in before.values()
    found, here, torch = ray.get(path.remote())
    assert list(stream_of([1, 2]).iter_rows())
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert repr(DataContext.get_current()) == context
assert here == os.getcwd() and here not in found and "site-packages" in torch, found
assert os.listdir(sys.argv[1]) == []
# The host can then start its own Ray, with its own token.
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1] + "/host")
ray.get(path.remote())
"""


@pytest.mark.slow
def test_the_host_is_unchanged_and_its_folder_is_not_on_the_workers_path(short: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    env = support.alone() | {"RAY_TMPDIR": str(short), "HOME": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(short)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


DYING = """
import sys
from sharelock_ray.engine import cluster
from sharelock_ray.errors import RunError

cluster._DEAD_S = 2
try:
    with cluster.connected():
        print("connected")
except RunError as error:
    print(error)
"""


@pytest.mark.slow
def test_workers_that_die_during_their_start_are_one_line(short: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        'if b"default_worker.py" in open("/proc/self/cmdline", "rb").read():\n    raise SystemExit(1)\n'
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = support.alone() | {"RAY_TMPDIR": str(short), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", DYING], env=env, capture_output=True, text=True)
    assert done.stdout.startswith("Ray's workers die during their start: "), done.stderr
    assert Path(done.stdout.partition("(log: ")[2].rstrip(")\n")).exists()


class TestOwnFolder:
    def test_only_folders_of_killed_processes_are_removed(self, short: Path) -> None:
        for name in ("sharelock-killed", "sharelock-new", "another"):
            (short / name / "r").mkdir(parents=True)
        (short / "sharelock-killed" / "lock").touch()
        (short / "another" / "lock").touch()
        (short / "kept").mkdir()
        (short / "kept" / "file").touch()
        (short / "sharelock-planted").mkdir()
        (short / "sharelock-planted" / "lock").symlink_to(short / "kept" / "file")
        with cluster._own_folder() as first, cluster._own_folder() as second:
            assert first != second
            assert {path.name for path in short.iterdir()} == {
                "sharelock-new",
                "sharelock-planted",
                "another",
                "kept",
                first.name,
                second.name,
            }
            assert stat.S_IMODE(first.stat().st_mode) == 0o700
        assert {path.name for path in short.iterdir()} == {"sharelock-new", "sharelock-planted", "another", "kept"}

    def test_is_short_enough_for_paths_of_sockets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with cluster._own_folder() as folder:
            session = "session_2026-11-29_00-30-07_804342_4194304"
            assert len(str(folder / "r" / session / "sockets" / "plasma_store")) <= 107


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "message"),
        [
            (
                "http://127.0.0.1:8265",
                r"^http://\S+ is the jobs address of a Ray cluster, for `ray job submit .* give",
            ),
            ("ray://127.0.0.1:10001", r"^ray://\S+ belongs to Ray Client, which cannot train: .* give HOST:PORT"),
            ("127.0.0.1:1", r"^no Ray cluster answers at 127\.0\.0\.1:1: "),
            ("127.0.0.1:99999", r"^no Ray cluster answers at 127\.0\.0\.1:99999: "),
        ],
    )
    def test_that_are_invalid_are_one_line(self, address: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            cluster._join(address)

    def test_of_a_cluster_with_another_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(**options: object) -> None:
            raise AuthenticationError("InvalidAuthToken: Authentication token is missing or incorrect")

        monkeypatch.setattr(ray, "init", refuse)
        with pytest.raises(RequestError, match=r"^the Ray cluster at head requires another token: set RAY_AUTH_MODE"):
            cluster._join("head")


class TestResources:
    @pytest.fixture(autouse=True)
    def _four_cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})

        monkeypatch.setattr(cluster, "_own", False)

    def nodes(self, monkeypatch: pytest.MonkeyPatch, **labels: str) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": labels}])

    def test_a_fixed_cluster_with_too_few_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes(monkeypatch, **{"ray.io/node-id": "1"})
        cluster.require_resources({"CPU": 4, "GPU": 0}, "lower it")
        with pytest.raises(RequestError, match=r"^this needs 1 GPU, but Ray has 0 here: lower it$"):
            cluster.require_resources({"CPU": 4, "GPU": 1}, "lower it")

    def test_an_autoscaling_cluster_is_waited_for(self, monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
        self.nodes(monkeypatch, **{"ray.io/node-group": "head"})
        cluster.require_resources({"CPU": 8}, "lower it")
        assert said.getvalue() == (
            "this needs 8 CPU, but the cluster has 4 now: waiting for it to scale up; if it does not, lower it\n"
        )

    def test_a_local_instance_never_grows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # As in a pod of KubeRay.
        self.nodes(monkeypatch, **{"ray.io/node-group": "head"})
        monkeypatch.setattr(cluster, "_own", True)
        with pytest.raises(RequestError, match="needs 8 CPU, but Ray has 4 here"):
            cluster.require_resources({"CPU": 8}, "lower it")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestReadableErrors:
    """Errors of workers as users see them."""

    def fails(self, error: Exception) -> str:
        with pytest.raises((RunError, RequestError)) as ended, cluster.readable_errors("extract"):
            raise error
        return str(ended.value)

    def test_a_job_log_gets_the_traceback(self, said: io.StringIO) -> None:
        assert self.fails(ValueError("no such layer")).startswith("extract failed: ValueError: no such layer")
        assert said.getvalue().startswith("Traceback (most recent call last):\n")
        assert said.getvalue().endswith("ValueError: no such layer\n")

    def test_a_terminal_gets_a_line_that_names_the_log(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        terminal = Terminal()
        monkeypatch.setattr("sharelock_ray.progress._user", terminal)
        monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
        (tmp_path / "log").write_text("Ray says")
        monkeypatch.setattr(cluster, "_folder", tmp_path)
        before = os.umask(0)
        try:
            logs = [self.fails(ValueError("no such layer")).partition("(log: ")[2] for _ in range(25)]
        finally:
            os.umask(before)
        assert terminal.getvalue() == ""
        kept = Path(logs[-1].removesuffix(")"))
        assert kept.read_text() == "Ray says"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert len(list(kept.parent.iterdir())) == 20

    def test_a_mistake_of_the_user_is_one_line_without_a_traceback(self, said: io.StringIO) -> None:
        text = textwrap.dedent(
            """\
            The actor died because of an error raised in its creation task
              File "group.py", line 1, in load
            sharelock_ray.errors.RequestError: no model at nowhere
            """
        )
        assert self.fails(ray.exceptions.RaySystemError(text)) == "no model at nowhere"
        assert said.getvalue() == ""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short RAY_TMPDIR, so that paths of sockets fit."""
    folder = Path(tempfile.mkdtemp(prefix="sl-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)
