"""The documented way to a study on a cluster: `ray job submit … -- python jobs/tune.py …`, and its dashboard."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import support
from sharelock_ray.recipe.load import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_ROOT = Path(__file__).parents[2]
RECIPE = "jobs/recipes/ablation.yaml"
SMALL = {
    "alignment.steps": 4,
    "alignment.evaluate_every": 2,
    "alignment.global_batch_size": 32,
    "tuning.seeds": [0],
    "tuning.space": {
        "alignment.language.depth": [2, 4, 6, 8],
        "alignment.language.width": [8, 16, 24],
        "alignment.language.activation": ["relu", "gelu", "silu"],
    },
    "tuning.cpus_per_trial": 0.5,
    "tuning.gpus_per_trial": 0,
}
"""The same 36 points, but for their width and the length of the trainings."""


def _get(head: Any, path: str) -> Any:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_shipped_ablation_runs_as_a_job_and_the_dashboard_lists_it(local_head: Any, tmp_path: Path) -> None:
    settings = [f"{field}={json.dumps(value)}" for field, value in (SMALL | {"output": str(tmp_path / "run")}).items()]
    support.write_features_of(read_recipe(RECIPE, settings))
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", local_head.address]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "jobs/tune.py"]
    command += ["--config", RECIPE, "--json"]
    command += [argument for setting in settings for argument in ("--set", setting)]
    done = subprocess.run(command, cwd=_ROOT, env=local_head.env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*/trial.json")]
    assert [trial["state"] for trial in trials] == ["finished"] * 36
    assert (tmp_path / "run" / "study.html").exists()
    (job,) = _get(local_head, "/api/jobs/")
    assert (job["status"], "jobs/tune.py" in job["entrypoint"]) == ("SUCCEEDED", True)
    actors = _get(local_head, "/logical/actors")["data"]["actors"].values()
    # Small trials share a CPU: there are more processes than the three CPUs of the head.
    assert len([actor for actor in actors if actor["reprName"] == "alignment_trial"]) > 3
