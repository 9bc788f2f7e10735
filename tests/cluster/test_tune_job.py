"""The documented way to a study on a cluster: `ray job submit … -- python jobs/tune.py …`, and its dashboard."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import support

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_ROOT = Path(__file__).parents[2]


def _get(head: Any, path: str) -> Any:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_submitted_study_ends_as_one_and_the_dashboard_lists_it(local_head: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", local_head.address]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "jobs/tune.py"]
    command += ["--config", str(support.write_study(tmp_path / "study.yaml", str(tmp_path / "run"))), "--json"]
    done = subprocess.run(command, cwd=_ROOT, env=local_head.env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*/trial.json")]
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    assert (tmp_path / "run" / "study.html").exists()
    (job,) = _get(local_head, "/api/jobs/")
    assert (job["status"], "jobs/tune.py" in job["entrypoint"]) == ("SUCCEEDED", True)
    actors = _get(local_head, "/logical/actors")["data"]["actors"].values()
    assert "alignment_trial" in {actor["reprName"] for actor in actors}
