"""The trials of a study on the processes of a cluster.

Ray Tune starts a process for each slot and has it run trial after trial, so that imports, and the pages of mapped
features, are there once. Ray's own records of a study are thrown away: where to go on from is in the trials' folders.
"""

import math
import tempfile
import time
from typing import Any, Self

import ray
from ray import tune as ray_tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from sharelock_ray.engine import cluster
from sharelock_ray.engine.environment import environment
from sharelock_ray.progress import Progress, say
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.queue import StudyQueue
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import TrialJob, run_trial
from sharelock_ray.study.trials import LOWER_IS_BETTER, State, Trial

_REPORT_EVERY_S = 2.0
"""Without a scheduler that waits for each, validations are told no more often: each is a round trip."""
_RECORD, _ROW, _STEP, _SCORE = "record", "row", "step", "score"
"""What a trial tells the driver. The score is the validation as schedulers want it: higher is better."""

# Read by Ray Tune as it starts: it would write three files for each trial, take Ctrl-C for itself, refuse a trial that
# failed before it had anything to tell, and print tables of its own.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial that is stopped sits between two validations: until the next one, its process cannot take another.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}


def tune(queue: StudyQueue, spec: TuningSpec, steps: int, evaluate_every: int) -> list[Trial]:
    """Runs what is left of a study; trials that fail are recorded, and the study goes on.

    Args:
        steps, evaluate_every: of the trainings, as schedulers count.

    Raises:
        RequestError: Ray has too few resources for a single trial.
    """
    needed = {"CPU": spec.cpus_per_trial, "GPU": spec.gpus_per_trial}
    done = len(queue.trials)
    if done:
        say(f"tune: {done:,} of {queue.total:,} trials are there already")
    first = queue.next()
    if first is None:
        return queue.trials
    with (
        cluster.connected(),
        cluster.readable_errors("tune"),
        environment(_ENVIRONMENT),
        tempfile.TemporaryDirectory(prefix="sharelock-tune-", dir=cluster.scratch()) as records,
        Progress("tune", "trials", queue.total, done) as progress,
    ):
        cluster.require_resources(needed, "lower tuning.cpus_per_trial or gpus_per_trial")
        follower = _Follower(queue, spec, progress)
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(alignment_trial, {name.lower(): amount for name, amount in needed.items()}),
            tune_config=ray_tune.TuneConfig(
                search_alg=_Search(first, queue, spec),
                scheduler=_scheduler(spec, steps, evaluate_every),
                num_samples=-1,
                max_concurrent_trials=spec.max_concurrent,
                reuse_actors=True,
                metric=_SCORE,
                mode="max",
            ),
            run_config=ray_tune.RunConfig(
                name="study",
                storage_path=records,
                failure_config=ray_tune.FailureConfig(max_failures=spec.max_failures),
                callbacks=[follower],
                verbose=0,
            ),
        )
        with environment({"TUNE_MAX_PENDING_TRIALS_PG": str(_waiting(spec, needed))}):
            tuner.fit()
    return queue.trials


def _waiting(spec: TuningSpec, needed: dict[str, float]) -> int:
    """How many trials may wait for a process: all slots start at once, unless a sampler would choose too early."""
    if spec.sampler == "tpe":
        return 1
    there = ray.cluster_resources()
    slots = min(int(there.get(name, 1) / amount) for name, amount in needed.items() if amount)
    return max(1, min(slots, spec.max_concurrent or slots))


def alignment_trial(config: dict[str, Any]) -> dict[str, Any]:
    """What a process of the cluster runs for each trial. Its name is what Ray's dashboard shows."""
    job = TrialJob.model_validate(config["job"])
    told_at = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        nonlocal told_at
        if time.monotonic() - told_at < config["every"]:
            return
        told_at = time.monotonic()
        # Where the scheduler has had enough, this raises SystemExit.
        ray_tune.report({_STEP: row["step"], _SCORE: _score(row, config["monitored"]), _ROW: row})

    trial = run_trial(job, report)
    # A scheduler that compares means must meet no gap where a trial failed.
    score = _score(trial.values, config["monitored"])
    return {_STEP: max(trial.steps, 1), _SCORE: score, _RECORD: trial.model_dump(mode="json")}


def _score(values: dict[str, Any], monitored: str) -> float:
    if monitored not in values:
        return -math.inf
    return float(values[monitored]) * (-1 if monitored in LOWER_IS_BETTER else 1)


def _scheduler(spec: TuningSpec, steps: int, evaluate_every: int) -> TrialScheduler:
    if spec.scheduler == "none":
        return FIFOScheduler()
    # A third goes on at a ninth and at a third of the training. No trial is judged at its end: it has a score to come.
    grace = max(evaluate_every, steps // 9)
    if spec.scheduler == "asha":
        return AsyncHyperBandScheduler(time_attr=_STEP, max_t=steps + 1, grace_period=grace, reduction_factor=3)
    # Never put aside for others until there are samples: what a trial did since its checkpoint would be done twice.
    return MedianStoppingRule(time_attr=_STEP, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)


class _Here:
    """Stays in the driver: Ray Tune copies and saves what it is given, to restore it one day, which is not its part."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Search(_Here, Searcher):
    """The queue, as Ray Tune asks it."""

    def __init__(self, first: TrialJob, queue: StudyQueue, spec: TuningSpec) -> None:
        super().__init__(metric=_SCORE, mode="max")
        self._first: TrialJob | None = first
        self._queue, self._monitored = queue, spec.monitored
        self._every = _REPORT_EVERY_S if spec.scheduler == "none" else 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        job, self._first = self._first or self._queue.next(), None
        if job is None:
            return str(Searcher.FINISHED)
        return {"job": job.model_dump(mode="json"), "every": self._every, "monitored": self._monitored}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The follower hears of it with its reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study outlives Ray's own records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Follower(_Here, ray_tune.Callback):
    """Hears how trials go, and tells the study and the user."""

    def __init__(self, queue: StudyQueue, spec: TuningSpec, progress: Progress) -> None:
        self._queue, self._spec, self._progress = queue, spec, progress
        self._best: float | None = None

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        job = _job(trial)
        if _ROW in result:
            self._queue.report(job.trial.run, result[_ROW])
            self._progress.update(0)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        job, record = _job(trial), trial.last_result.get(_RECORD)
        if record is None:
            rows = RunFolder(job.trial.run).metrics()
            ended = self._queue.end(job.trial.run, rows, "pruned", "the scheduler ended it")
        else:
            ended = Trial.model_validate(record)
            self._queue.tell(ended)
        self._ended(ended)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        job = _job(trial)
        rows = RunFolder(job.trial.run).metrics()
        kind: State = "out of memory" if "OutOfMemoryError" in repr(trial.get_error()) else "failed"
        self._ended(self._queue.end(job.trial.run, rows, kind, f"its process was lost: {_first_line(trial)}"))

    def _ended(self, trial: Trial) -> None:
        if trial.reason and trial.state != "pruned":
            say(f"tune: {trial.point}, seed {trial.seed}: {trial.state}: {trial.reason}")
        name = self._spec.objective[0]
        if trial.state == "finished" and name in trial.values:
            known = [trial.values[name]] if self._best is None else [trial.values[name], self._best]
            self._best = min(known) if name in LOWER_IS_BETTER else max(known)
        self._progress.update(1, "" if self._best is None else f"best {name} {self._best:.4f}")


def _job(trial: Any) -> TrialJob:
    return TrialJob.model_validate(trial.config["job"])


def _first_line(trial: Any) -> str:
    return (str(trial.get_error()).strip().splitlines() or ["no reason known"])[-1]
