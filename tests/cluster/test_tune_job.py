"""The documented way to a study on a cluster: `ray job submit … -- python jobs/tune.py …`, and its dashboard."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import support
from sharelock_ray.recipe.load import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_ROOT = Path(__file__).parents[2]


def _write_study(folder: Path) -> Path:
    """A recipe of four trials, with its features beside it."""
    known = {"image_size": 8, "resize": 8, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    content = {
        "name": "study",
        "output": str(folder / "run"),
        "data": {"dataset": "pairs", "train": {"urls": "nowhere/*.tar"}},
        "encoders": [
            {"modality": "vision", "name": "signal", "model": "none", **known},
            {"modality": "language", "name": "signal", "model": "none"},
        ],
        "alignment": {
            "language": {"depth": 2, "width": 16},
            "global_batch_size": 32,
            "steps": 20,
            "evaluate_every": 10,
        },
        "tuning": {"space": {"alignment.language.depth": [1, 2]}, "seeds": [0, 1]},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    recipe = read_recipe(str(path))
    keys = [f"00000/{i:06d}" for i in range(200)]
    signal = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float16)
    for encoder in recipe.encoders:
        chunk = support.encoded(encoder.modality, keys, embeddings=signal)
        support.write_parts(recipe.feature_set_uri("train", encoder), encoder, [[chunk]])
    return path


def _get(head: Any, path: str) -> Any:
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head.address}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_submitted_study_ends_as_one_and_the_dashboard_lists_it(local_head: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", local_head.address]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", "python", "jobs/tune.py"]
    command += ["--config", str(_write_study(tmp_path)), "--json"]
    done = subprocess.run(command, cwd=_ROOT, env=local_head.env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*/trial.json")]
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    assert (tmp_path / "run" / "study.html").exists()
    (job,) = _get(local_head, "/api/jobs/")
    assert (job["status"], "jobs/tune.py" in job["entrypoint"]) == ("SUCCEEDED", True)
    actors = _get(local_head, "/logical/actors")["data"]["actors"].values()
    assert "alignment_trial" in {actor["reprName"] for actor in actors}
