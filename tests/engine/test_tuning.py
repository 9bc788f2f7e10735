"""Studies through Ray Tune: every trial runs once, also after kills; a failed trial does not end the study."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import support
from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.config import content_hash
from sharelock_ray.engine.tuning import tune
from sharelock_ray.errors import RequestError
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train as train_alone
from sharelock_ray.study.queue import StudyQueue
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import TrialJob
from sharelock_ray.study.trials import Trial

SPEC = AlignmentSpec(
    language=ProjectionSpec(depth=2, width=32, activation="gelu"),
    global_batch_size=64,
    steps=30,
    warmup_steps=5,
    evaluate_every=10,
    validation_fraction=0.2,
)
FAULTS = {
    "sound": {},
    "diverging": {"learning_rate": 1e30},
    # Its second layer would need 4 TB.
    "too large": {"language": {"depth": 3, "width": 1_000_000}},
    "long": {"steps": 1500, "evaluate_every": 100},
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return support.write_feature_sets(tmp_path_factory.mktemp("features"), pairs=300)


def changed(changes: dict[str, Any], seed: int = 0) -> AlignmentSpec:
    language = SPEC.language.model_dump() | changes.get("language", {})
    return AlignmentSpec.model_validate(SPEC.model_dump() | changes | {"language": language, "seed": seed})


def run(folder: Path, features: tuple[str, str], **fields: object) -> list[Trial]:
    """Runs a study over fields of the alignment."""
    asked = TuningSpec.model_validate(fields)

    def prepare(point: dict[str, Any], seed: int) -> TrialJob:
        spec = changed(asked.changes(point), seed)
        trial = Trial(point=point, seed=seed, run=str(folder / "trials" / content_hash(spec)), state="running")
        return TrialJob(trial=trial, vision=features[0], language=features[1], spec=spec)

    queue = StudyQueue("study", asked, str(folder / "trials"), str(folder / "optuna.journal"), prepare)
    return tune(queue, asked, SPEC.steps, SPEC.evaluate_every)


@pytest.mark.usefixtures("local_ray")
class TestTune:
    def test_trials_equal_trainings_in_one_process_and_reuse_processes(
        self, tmp_path: Path, features: tuple[str, str]
    ) -> None:
        asked = {"space": {"learning_rate": [1e-3, 3e-3]}, "seeds": [0, 1]}
        started = time.time()
        trials = run(tmp_path, features, **asked)
        assert [trial.state for trial in trials] == ["finished"] * 4
        (chosen,) = (t for t in trials if (t.point, t.seed) == ({"learning_rate": 3e-3}, 1))
        alone = RunFolder(str(tmp_path / "alone"))
        train_alone(alone, *features, changed({"learning_rate": 3e-3}, seed=1))
        for ours, theirs in zip(RunFolder(chosen.run).metrics(), alone.metrics(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert chosen.values["validation_loss"] == pytest.approx(alone.result().best_validation_loss, abs=1e-5)
        assert chosen.values["parameters"] == alone.result().parameters
        assert 0 < chosen.values["recall_at_1"] <= 1
        # Fewer processes than trials.
        assert len([p for p in trial_processes() if p.create_time() > started]) <= 2
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").rglob("*")}
        assert {t.run for t in run(tmp_path, features, **asked)} == {t.run for t in trials}
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def test_a_failed_trial_is_recorded_and_a_killed_one_is_resumed(
        self, tmp_path: Path, features: tuple[str, str]
    ) -> None:
        killed: list[int] = []
        killer = threading.Thread(target=kill_during, args=(tmp_path, killed))
        killer.start()
        trials = run(tmp_path, features, space={"case": FAULTS}, objective="recall_at_1")
        killer.join()
        assert killed
        ended = {trial.point["case"]: trial for trial in trials}
        assert {case: trial.state for case, trial in ended.items()} == {
            "sound": "finished",
            "diverging": "diverged",
            "too large": "out of memory",
            "long": "finished",
        }
        assert "the loss is nan" in ended["diverging"].reason
        assert "can't allocate memory" in ended["too large"].reason
        undisturbed = RunFolder(str(tmp_path / "undisturbed"))
        train_alone(undisturbed, *features, changed(FAULTS["long"]))
        for ours, theirs in zip(RunFolder(ended["long"].run).metrics(), undisturbed.metrics(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)

    def test_successive_halving_stops_poor_trials(self, tmp_path: Path, features: tuple[str, str]) -> None:
        rates = [1e-3, 3e-3, *(1e-9 * i for i in range(1, 5))]
        trials = run(tmp_path, features, space={"learning_rate": rates}, scheduler="asha", max_concurrent=1)
        ended = {trial.point["learning_rate"]: trial for trial in trials}
        assert ended[1e-3].state == "finished"
        pruned = [trial for trial in trials if trial.state == "pruned"]
        assert pruned
        assert all(trial.point["learning_rate"] < 1e-6 and trial.steps < SPEC.steps for trial in pruned)
        assert not any((Path(trial.run) / "training.json").exists() for trial in pruned)

    @pytest.mark.slow
    @pytest.mark.parametrize(("sampler", "scheduler"), [("random", "median"), ("tpe", "none")])
    def test_other_samplers_run_the_requested_number_of_trials(
        self, tmp_path: Path, features: tuple[str, str], sampler: str, scheduler: str
    ) -> None:
        asked = {
            "space": {
                "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
                "case": {"relu": {"language": {"activation": "relu"}}, "gelu": {"language": {"activation": "gelu"}}},
            },
            "sampler": sampler,
            "scheduler": scheduler,
            "trials": 5,
            "objective": ["recall_at_1", "parameters"] if scheduler == "none" else ["recall_at_1"],
        }
        trials = run(tmp_path, features, **asked)
        assert len({trial.run for trial in trials}) == 5
        assert {trial.state for trial in trials} <= {"finished", "pruned"}
        assert [trial.state for trial in trials].count("finished") >= 3
        assert all(1e-5 <= trial.point["learning_rate"] <= 1e-2 for trial in trials)
        # A second run asks the sampler for no further point.
        assert {trial.run for trial in run(tmp_path, features, **asked)} == {trial.run for trial in trials}

    def test_more_resources_than_available_fail_at_once(self, tmp_path: Path, features: tuple[str, str]) -> None:
        with pytest.raises(RequestError, match=r"needs 64 CPU.*lower tuning\.cpus_per_trial"):
            run(tmp_path, features, space={"learning_rate": [1e-3]}, cpus_per_trial=64)


def trial_processes() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(name in " ".join(process.info["cmdline"] or []) for name in ("alignment_trial", "ImplicitFunc"))
    ]


def kill_during(folder: Path, killed: list[int]) -> None:
    """Kills all trial processes with SIGKILL once the long trial has a checkpoint."""
    deadline = time.monotonic() + 200
    long = folder / "trials" / content_hash(changed(FAULTS["long"]))
    while time.monotonic() < deadline:
        if (long / "last" / "checkpoint.json").exists():
            for process in trial_processes():
                if process.parent() and os.getpid() in [p.pid for p in process.parents()]:
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
            return
        time.sleep(0.05)
