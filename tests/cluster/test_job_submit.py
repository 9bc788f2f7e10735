"""The documented way in: `ray job submit … -- python jobs/extract.py …`, against a head of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_ROOT = Path(__file__).parents[2]
# The job's part of the CLI's output starts here; what precedes it is the CLI's own chatter.
_STARTS = "Running entrypoint for job"


def _submit(head: Any, *settings: str) -> subprocess.CompletedProcess[str]:
    """cluster/README.md's command, with one `--set` for each of `settings`."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "jobs/extract.py"]
    command += ["--config", "jobs/recipes/demo.yaml"]
    for one in settings:
        command += ["--set", one]
    return subprocess.run(command, cwd=_ROOT, env=head.env, capture_output=True, text=True, timeout=280)


def test_submitted_job_extracts_both_modalities(local_head: Any, tmp_path: Path) -> None:
    done = _submit(local_head, f"output={tmp_path}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    manifests = [path.relative_to(tmp_path).parts for path in (tmp_path / "features").rglob("manifest.json")]
    # <dataset>/<split>/<modality>/<encoder>-<hash8>/manifest.json
    assert {parts[-3] for parts in manifests} == {"vision", "language"}
    # A large upload would mean that the excludes let a virtual environment or runs through.
    assert "is very large" not in done.stderr


def test_wrong_field_ends_the_job_with_one_clear_line(local_head: Any, tmp_path: Path) -> None:
    done = _submit(local_head, f"output={tmp_path}", "nonsense=1")
    assert done.returncode == 1
    # Ray's own exit code is always 1; the job's is in its message.
    assert "failed with exit code 2" in done.stdout
    # The CLI shows the log as it comes, and once more in its last message.
    log = done.stdout.partition(_STARTS)[2].partition("Status message:")[0]
    assert "Traceback" not in done.stdout
    assert len([line for line in log.splitlines()[1:] if "nonsense" in line]) == 1
    assert not list(tmp_path.rglob("manifest.json"))
