"""The trials of a study on a cluster.

Ray Tune starts one process per slot and reuses it for trial after trial, so that imports and pages of mapped features
are loaded once. Ray's own records of a study are discarded: trials resume from their folders.
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
"""Minimum interval between reports of validations if no scheduler needs each: a report is a round trip."""
_RECORD, _ROW, _STEP, _SCORE = "record", "row", "step", "score"
"""Keys of a trial's reports to the driver. The score is the monitored validation value; higher is better."""

# Disables Ray Tune's three files per trial, its handler of Ctrl-C, its error for trials that fail before their first
# report, and its own tables.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A stopped trial ends at its next validation; until then its process cannot take another.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}


def tune(queue: StudyQueue, spec: TuningSpec, steps: int, evaluate_every: int) -> list[Trial]:
    """Runs the remaining trials of a study; failed trials are recorded, and the study continues.

    Args:
        steps, evaluate_every: steps and validation interval of each training, for the scheduler.

    Raises:
        RequestError: Ray has too few resources for a single trial.
    """
    needed = {"CPU": spec.cpus_per_trial, "GPU": spec.gpus_per_trial}
    done = len(queue.trials)
    if done:
        say(f"tune: {done:,} of {queue.total:,} trials are already done")
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
        with environment({"TUNE_MAX_PENDING_TRIALS_PG": str(_max_pending(spec, needed))}):
            tuner.fit()
    return queue.trials


def _max_pending(spec: TuningSpec, needed: dict[str, float]) -> int:
    """Maximum number of pending trials: one per slot, or 1 if the sampler learns from finished trials."""
    if spec.sampler == "tpe":
        return 1
    available = ray.cluster_resources()
    slots = min(int(available.get(name, 1) / amount) for name, amount in needed.items() if amount)
    return max(1, min(slots, spec.max_concurrent or slots))


def alignment_trial(config: dict[str, Any]) -> dict[str, Any]:
    """Runs one trial in a process of the cluster. Ray's dashboard shows the name of this function."""
    job = TrialJob.model_validate(config["job"])
    reported_at = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at < config["every"]:
            return
        reported_at = time.monotonic()
        # Raises SystemExit if the scheduler stops the trial.
        ray_tune.report({_STEP: row["step"], _SCORE: _score(row, config["monitored"]), _ROW: row})

    trial = run_trial(job, report)
    # A failed trial reports a score too, since schedulers that compare means need one for each trial.
    score = _score(trial.values, config["monitored"])
    return {_STEP: max(trial.steps, 1), _SCORE: score, _RECORD: trial.model_dump(mode="json")}


def _score(values: dict[str, Any], monitored: str) -> float:
    if monitored not in values:
        return -math.inf
    return float(values[monitored]) * (-1 if monitored in LOWER_IS_BETTER else 1)


def _scheduler(spec: TuningSpec, steps: int, evaluate_every: int) -> TrialScheduler:
    if spec.scheduler == "none":
        return FIFOScheduler()
    # A third of the trials continues at a ninth and at a third of the steps. `max_t` is beyond the last step, so that
    # no trial is stopped before its final score.
    grace = max(evaluate_every, steps // 9)
    if spec.scheduler == "asha":
        return AsyncHyperBandScheduler(time_attr=_STEP, max_t=steps + 1, grace_period=grace, reduction_factor=3)
    # Trials are never paused to wait for samples: work since the last checkpoint would be repeated.
    return MedianStoppingRule(time_attr=_STEP, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)


class _NotCopied:
    """Excluded from Ray Tune's copies and saved state, since studies are restored from the trials' folders."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Search(_NotCopied, Searcher):
    """Adapts the queue to Ray Tune's search interface."""

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
        """Does nothing: `_Follower` records the end of a trial."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: Ray's own records are discarded."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: Ray's own records are discarded."""


class _Follower(_NotCopied, ray_tune.Callback):
    """Passes the results of trials on to the study and the user."""

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
