"""The dashboards of docs/tuning.md, read over HTTP as a browser does."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ports import free_ports
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.metrics import Metrics
from sharelock_ray.study.queue import StudyQueue
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import TrialJob
from sharelock_ray.study.trials import Trial

SPACE = {"alignment.language.depth": [2, 4], "alignment.learn_logit_scale": [True, False]}
LOSSES = {10: 5.0, 20: 4.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a study with three finished trials and one that diverged."""
    folder = tmp_path_factory.mktemp("study")
    spec = TuningSpec(space=SPACE, objective="recall_at_1")

    def prepare(point: dict[str, Any], seed: int) -> TrialJob:
        name = "-".join(map(str, point.values()))
        trial = Trial(point=point, seed=seed, run=str(folder / "trials" / name), state="running")
        return TrialJob(trial=trial, vision="", language="", spec=AlignmentSpec())

    queue = StudyQueue("a-study", spec, str(folder / "trials"), str(folder / "optuna.journal"), prepare)
    rows = [{"step": step, "validation_loss": loss, "recall_at_1": 1 / loss} for step, loss in LOSSES.items()]
    while (job := queue.next()) is not None:
        metrics = Metrics(RunFolder(job.trial.run), writes=True, step=0)
        for row in rows:
            metrics.add(row)
            queue.report(job.trial.run, row)
        metrics.publish()
        ended = {"state": "finished", "values": {"recall_at_1": 0.1 * job.trial.point["alignment.language.depth"]}}
        if job.trial.point == {"alignment.language.depth": 2, "alignment.learn_logit_scale": False}:
            ended = {"state": "diverged", "reason": "the loss is nan"}
        trial = job.trial.model_copy(update=ended | {"steps": 20})
        queue.tell(trial)
    return folder


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """Runs a server within the block; yields its address once it answers. PORT in `command` stands for a free port."""
    (port,) = map(str, free_ports(1))
    arguments = [argument.replace("PORT", port) for argument in command]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield address
    finally:
        process.kill()
        process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_tensorboard_shows_curves_and_settings_of_every_trial(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    names = {f"{path.name}/tensorboard" for path in (folder / "trials").iterdir()}
    logs = str(folder / "trials")
    with serving("-m", "tensorboard.main", "--logdir", logs, "--port", "PORT", "--load_fast", "false") as address:
        deadline = time.monotonic() + 60
        while set(get(f"{address}/data/runs")) != names and time.monotonic() < deadline:
            time.sleep(0.2)
        assert set(get(f"{address}/data/runs")) == names
        tags = get(f"{address}/data/plugin/scalars/tags")
        assert {"validation_loss", "recall_at_1", "end/recall_at_1"} <= tags["4-True/tensorboard"].keys()
        points = get(f"{address}/data/plugin/scalars/scalars?run=4-True/tensorboard&tag=validation_loss")
        assert [(step, value) for _, step, value in points] == list(LOSSES.items())
        request = urllib.request.Request(
            f"{address}/data/plugin/hparams/experiment", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            settings = {each["name"] for each in json.load(answer)["hparamInfos"]}
        assert settings == {*SPACE, "seed"}


def test_optuna_dashboard_shows_every_trial_and_why_one_failed(folder: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    start = "from optuna_dashboard._cli import main; main()"
    with serving("-c", start, str(folder / "optuna.journal"), "--port", "PORT", "--host", "127.0.0.1") as address:
        (study,) = get(f"{address}/api/studies")["study_summaries"]
        assert study["study_name"] == "a-study"
        trials = get(f"{address}/api/studies/{study['study_id']}")["trials"]
    assert sorted(trial["state"] for trial in trials) == ["Complete"] * 3 + ["Fail"]
    (failed,) = (trial for trial in trials if trial["state"] == "Fail")
    assert "the loss is nan" in str(failed["user_attrs"])
    complete = next(trial for trial in trials if trial["state"] == "Complete")
    assert {parameter["name"] for parameter in complete["params"]} == set(SPACE)
    assert [each["step"] for each in complete["intermediate_values"]] == list(LOSSES)
