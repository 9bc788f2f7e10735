"""A Ray head as a person starts one: own processes, own ports, own token, reached only over HTTP."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ports import free_ports

_START_SECONDS = 120
_OBJECT_STORE_BYTES = 256 << 20
_CPUS = 3
# The test runs inside nobody's cluster: an address or a token of the caller's shell must not lead it to another one.
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS", "RAY_RUNTIME_ENV_HOOK")


@dataclass(frozen=True)
class Head:
    """Where the head answers, and the environment in which its clients run."""

    address: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def local_head() -> Iterator[Head]:
    """A running head with three CPUs and a job server; every process of it is gone after the module."""
    # Not pytest's own temporary folder: Ray puts unix sockets below it, whose paths may have 107 characters at most.
    home = Path(tempfile.mkdtemp(prefix="sl-"))
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    (home / "ray").mkdir()
    gcs, dashboard, client, agent, metrics = free_ports(5)
    env = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
        # A job's `python` is whatever the head finds first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Only the nodes' own environment sets it: Ray drops the variable from the environment of a job.
        "RAY_worker_niceness": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += ["--node-ip-address=127.0.0.1", f"--ray-client-server-port={client}", "--min-worker-port=0"]
    command += ["--max-worker-port=0", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    command += [f"--num-cpus={_CPUS}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    log = home / "start.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _await_answers(process, address, agent, token.read_text(), log)
        yield Head(address=address, env=env)
    finally:
        _end(process)
        shutil.rmtree(home, ignore_errors=True)


def _await_answers(process: subprocess.Popen[bytes], address: str, agent: int, token: str, log: Path) -> None:
    """Returns once the head answers, and its agent too, which is what starts jobs."""
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5):
            socket.create_connection(("127.0.0.1", agent), timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the Ray head did not answer at {address}:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the head's group and everything that came from it; never `ray stop`, which ends every Ray of the machine."""
    # Ray gives some children (a job's driver, workers) groups of their own, so the tree is listed while it stands.
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    # Nothing of it is kept, so it need not end in order, which takes ten seconds.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=5)
