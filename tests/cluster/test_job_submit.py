"""The documented way in: `ray job submit … -- python jobs/….py …`, against a head of its own, and its dashboard."""

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
# The job's part of the CLI's output starts here; what precedes it is the CLI's own chatter.
_STARTS = "Running entrypoint for job"
DEMO = "sharelock_ray/recipe/recipes/demo.yaml"
ABLATION = "sharelock_ray/recipe/recipes/ablation.yaml"
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


def _submit(head: Any, script: str, recipe: str, *settings: str) -> subprocess.CompletedProcess[str]:
    """cluster/README.md's command, with one `--set` for each of `settings`."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", f"jobs/{script}.py", "--config", recipe]
    for one in settings:
        command += ["--set", one]
    return subprocess.run(command, cwd=_ROOT, env=head.env, capture_output=True, text=True, timeout=280)


def _get(head: Any, path: str) -> Any:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_submitted_job_extracts_both_modalities(local_head: Any, tmp_path: Path) -> None:
    done = _submit(local_head, "extract", DEMO, f"output={tmp_path}", "data.shapes.train_images=240")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    manifests = [path.relative_to(tmp_path).parts for path in (tmp_path / "features").rglob("manifest.json")]
    # <dataset>/<split>/<modality>/<encoder>-<hash8>/manifest.json
    assert {parts[-3] for parts in manifests} == {"vision", "language"}
    # A large upload would mean that the excludes let a virtual environment or runs through.
    assert "is very large" not in done.stderr


def test_wrong_field_ends_the_job_with_one_clear_line(local_head: Any, tmp_path: Path) -> None:
    done = _submit(local_head, "extract", DEMO, f"output={tmp_path}", "nonsense=1")
    assert done.returncode == 1
    # Ray's own exit code is always 1; the job's is in its message.
    assert "failed with exit code 2" in done.stdout
    # The CLI shows the log as it comes, and once more in its last message.
    log = done.stdout.partition(_STARTS)[2].partition("Status message:")[0]
    assert "Traceback" not in done.stdout
    assert len([line for line in log.splitlines()[1:] if "nonsense" in line]) == 1
    assert not list(tmp_path.rglob("manifest.json"))


def test_the_shipped_ablation_runs_as_a_job_and_the_dashboard_lists_it(local_head: Any, tmp_path: Path) -> None:
    settings = [f"{field}={json.dumps(value)}" for field, value in (SMALL | {"output": str(tmp_path / "run")}).items()]
    support.write_features_of(read_recipe(ABLATION, settings))
    done = _submit(local_head, "tune", ABLATION, *settings)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*/trial.json")]
    assert [trial["state"] for trial in trials] == ["finished"] * 36
    assert (tmp_path / "run" / "study.html").exists()
    (job,) = (job for job in _get(local_head, "/api/jobs/") if "jobs/tune.py" in job["entrypoint"])
    assert job["status"] == "SUCCEEDED"
    actors = _get(local_head, "/logical/actors")["data"]["actors"].values()
    # Small trials share a CPU: there are more processes than the three CPUs of the head.
    assert len([actor for actor in actors if actor["reprName"] == "alignment_trial"]) > 3
