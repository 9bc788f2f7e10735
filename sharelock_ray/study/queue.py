"""The queue of a study's trials.

Every trial has a folder, named by everything that determines its result, with a record of its state. A trial that is
over is never run again, even if the database is lost or belongs to another study of the same training. The Optuna
study serves the samplers and Optuna's dashboard.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.study.spec import PASSWORD, Range, TuningSpec
from sharelock_ray.study.tensorboard import write_hparams
from sharelock_ray.study.trial_job import TrialJob, ended_early
from sharelock_ray.study.trials import LOWER_IS_BETTER, Double, State, Trial, read_trial, write_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_RUN, _SEED, _REASON, _SAME_AS = "run", "seed", "reason", "same as"
"""User attributes of a trial in the database."""

_REBUILD = "move that file away, and the study is rebuilt from its trials' folders"

Prepare = Callable[[dict[str, Any], int], TrialJob]
"""Makes the job of a point and a seed. For points that give the same model, it makes the job of the first one; equal
folders mean equal trainings."""


def open_storage(url: str) -> BaseStorage:
    """The database at an SQLAlchemy URL, or in a journal file at a path.

    A database's password comes from the environment variable `SHARELOCK_OPTUNA_PASSWORD`, since the URL is stored.

    Raises:
        RequestError: the database cannot be reached, or the journal is damaged.
    """
    if "://" not in url:
        return _open_journal(Path(url))
    password = os.environ.get(PASSWORD)
    try:
        return RDBStorage(url, engine_kwargs={"connect_args": {"password": password}} if password else None)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"`tuning.storage`: {url.partition('://')[0]} cannot be used: {reason}") from None


def _open_journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror})") from None
    # Optuna raises various errors for inconsistent records.
    except (LookupError, ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{path} cannot be read ({type(error).__name__}: {reason}): {_REBUILD}") from None


def _drop_torn_line(journal: Path) -> None:
    """Removes an incomplete last line, left by a process that was killed while writing.

    Optuna tolerates such a line only until another one is appended to it.

    Raises:
        RequestError: a line before the last one is damaged.
    """
    if not journal.exists():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        *lines, rest = journal.read_bytes().split(b"\n")
        damaged = next((i for i, line in enumerate(lines) if not _is_record(line)), len(lines))
        if damaged < len(lines) - 1 or (damaged < len(lines) and rest):
            raise RequestError(f"line {damaged + 1} of {journal} is damaged: {_REBUILD}")
        if damaged < len(lines) or rest:
            os.truncate(journal, sum(len(line) + 1 for line in lines[:damaged]))
    finally:
        lock.release()


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@dataclass
class _Running:
    """A trial that runs in a process, and its entry in the database."""

    job: TrialJob
    entry: optuna.Trial


class StudyQueue:
    """Hands out trials until all are over.

    Args:
        name: of the study in the database. Studies of trials that cannot be compared need different names.
        folder: parent of the trials' folders.
        database: see `open_storage`.
    """

    def __init__(self, name: str, spec: TuningSpec, folder: str, database: str, prepare: Prepare) -> None:
        self._spec, self._prepare = spec, prepare
        self._database = open_storage(database)
        self._study = optuna.create_study(
            storage=self._database,
            study_name=name,
            directions=["minimize" if name in LOWER_IS_BETTER else "maximize" for name in spec.objective],
            load_if_exists=True,
        )
        self._distributions = {axis: _distribution(spec, axis) for axis in spec.space}
        self._known: dict[str, Trial] = {}
        """Trials that are over, by folder."""
        self._running: dict[str, _Running] = {}
        self._to_resume: deque[Trial] = deque()
        """Interrupted trials."""
        self._prepared: dict[str, optuna.Trial] = {}
        """Database entries of trials that are about to begin, by folder."""
        self._points: dict[str, dict[str, Any]] = {}
        """Sampled points, by the folder of their first seed."""
        self.doubles: list[Double] = []
        """Points that give the same model as another point."""
        self._remaining = self._jobs()
        self._restore(folder)
        if spec.sampler == "grid":
            for point in spec.points():
                self._note_double(point, self._prepare(point, spec.seeds[0]))

    @property
    def trials(self) -> list[Trial]:
        """Trials that are over."""
        return list(self._known.values())

    @property
    def total(self) -> int:
        """Maximum number of trials."""
        points = self._spec.trials or sum(1 for _ in self._spec.points()) - len(self.doubles)
        return points * len(self._spec.seeds)

    def next(self) -> TrialJob | None:
        """The next trial to run or resume; None if all are handed out."""
        while self._to_resume:
            trial = self._to_resume.popleft()
            if trial.run not in self._running:
                return self._begin(self._prepare(trial.point, trial.seed))
        for job in self._remaining:
            if job.trial.run not in self._known and job.trial.run not in self._running:
                return self._begin(job)
        return None

    def report(self, run: str, row: dict[str, Any]) -> None:
        """Reports a validation, a row of the trial's metrics, to the database."""
        if len(self._spec.objective) == 1:
            self._running[run].entry.report(row[self._spec.monitored], int(row["step"]))

    def tell(self, trial: Trial) -> None:
        """Records the end of a trial in the database."""
        entry = self._running.pop(trial.run).entry
        if trial.reason:
            entry.set_user_attr(_REASON, trial.reason)
        self._study.tell(entry, **self._outcome(trial))
        self._known[trial.run] = trial
        write_hparams(trial)

    def end(self, run: str, rows: list[dict[str, Any]], state: State, reason: str) -> Trial:
        """Writes the record of a trial that could not do so itself: it was pruned, or its process was lost."""
        trial = ended_early(self._running[run].job.trial, rows, state, reason)
        write_trial(trial)
        self.tell(trial)
        return trial

    def _jobs(self) -> Iterator[TrialJob]:
        """Every trial of the study, in order; points are sampled lazily."""
        if self._spec.sampler == "grid":
            # Seeds are the outer loop, so that an interrupted study has a whole grid of its first seed.
            for seed in self._spec.seeds:
                for point in self._spec.points():
                    yield self._prepare(point, seed)
            return
        for point in list(self._points.values()):
            yield from self._of_all_seeds(point)
        for index in range(len(self._points), self._spec.trials or 0):
            sampled = self._sampled(index)
            if sampled is not None:
                yield from self._of_all_seeds(sampled)

    def _of_all_seeds(self, point: dict[str, Any]) -> Iterator[TrialJob]:
        for seed in self._spec.seeds:
            yield self._prepare(point, seed)

    def _sampled(self, index: int) -> dict[str, Any] | None:
        """The sampler's next point; None if it is no valid recipe or is known already."""
        # Seeded by the point's index, so that a random search does not depend on interruptions.
        kinds = {"random": RandomSampler, "tpe": partial(TPESampler, constant_liar=True)}
        self._study.sampler = kinds[self._spec.sampler](seed=index)
        entry = self._study.ask(self._distributions)
        point = dict(entry.params)
        try:
            job = self._prepare(point, self._spec.seeds[0])
        except RequestError as error:
            entry.set_user_attr(_REASON, str(error))
            self._study.tell(entry, state=TrialState.FAIL)
            return None
        run = job.trial.run
        if run in self._points:
            if self._note_double(point, job):
                entry.set_user_attr(_SAME_AS, run)
            known = self._known.get(run)
            self._study.tell(entry, **(self._outcome(known) if known else {"state": TrialState.FAIL}))
            return None
        self._points[run] = point
        self._prepared[run] = entry
        return point

    def _note_double(self, point: dict[str, Any], job: TrialJob) -> bool:
        """Notes and returns whether the job of a point is that of another point."""
        is_double = job.trial.point != point
        if is_double and not any(double.point == point for double in self.doubles):
            self.doubles.append(Double(point=point, same_as=job.trial.point))
        return is_double

    def _begin(self, job: TrialJob) -> TrialJob:
        run = job.trial.run
        entry = self._prepared.pop(run, None)
        if entry is None:
            self._study.enqueue_trial(job.trial.point)
            entry = self._study.ask(self._distributions)
        entry.set_user_attr(_RUN, run)
        entry.set_user_attr(_SEED, job.trial.seed)
        self._running[run] = _Running(job, entry)
        write_trial(job.trial)
        return job

    def _restore(self, folder: str) -> None:
        """Restores the state from the trials' folders and the database."""
        in_database = self._study.get_trials()
        entries = {entry.user_attrs.get(_RUN, ""): entry for entry in in_database}
        records = [read_trial(storage.join(folder, name)) for name in storage.names(folder)]
        # Trials that are over come first, so that they represent points with the same model.
        for record in sorted(filter(None, records), key=lambda record: not record.over):
            job = self._job_of(record)
            if job is None:
                continue
            trial = record.model_copy(update={"without_effect": job.trial.without_effect})
            self._points[self._prepare(trial.point, self._spec.seeds[0]).trial.run] = trial.point
            entry = entries.get(trial.run)
            if not trial.over:
                self._to_resume.append(trial)
                if entry is not None and entry.state == TrialState.RUNNING:
                    self._prepared[trial.run] = self._resumed(entry.number)
                continue
            self._known[trial.run] = trial
            if entry is None:
                self._study.add_trial(self._entry_of(trial))
            elif not entry.state.is_finished():
                self._study.tell(entry.number, **self._outcome(trial))
        for entry in in_database:
            if _SAME_AS in entry.user_attrs:
                self._note_double(dict(entry.params), self._prepare(dict(entry.params), self._spec.seeds[0]))
        for entry in self._study.get_trials(states=(TrialState.RUNNING,)):
            if entry.user_attrs.get(_RUN) not in self._prepared:
                self._study.tell(entry.number, state=TrialState.FAIL)

    def _resumed(self, number: int) -> optuna.Trial:
        """The running trial of this number in the database."""
        study = self._database.get_study_id_from_name(self._study.study_name)
        return optuna.Trial(self._study, self._database.get_trial_id_from_study_id_trial_number(study, number))

    def _job_of(self, trial: Trial) -> TrialJob | None:
        """The job of a record; None if this study has no trial with exactly its settings."""
        if trial.point.keys() != self._spec.space.keys() or trial.seed not in self._spec.seeds:
            return None
        if not all(self._contains(axis, value) for axis, value in trial.point.items()):
            return None
        job = self._prepare(trial.point, trial.seed)
        return job if job.trial.run == trial.run else None

    def _contains(self, axis: str, value: Any) -> bool:
        values = self._spec.space[axis]
        if isinstance(values, Range):
            return isinstance(value, int | float) and values.low <= value <= values.high
        return value in (self._spec.labels(axis) or ())

    def _outcome(self, trial: Trial) -> dict[str, Any]:
        """State and values of a trial in Optuna's terms."""
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)
        values = [trial.values.get(name, math.nan) for name in self._spec.objective]
        if state != TrialState.COMPLETE or not all(map(math.isfinite, values)):
            return {"state": state if state == TrialState.PRUNED else TrialState.FAIL}
        return {"state": state, "values": values}

    def _entry_of(self, trial: Trial) -> FrozenTrial:
        attributes = {_RUN: trial.run, _SEED: trial.seed} | ({_REASON: trial.reason} if trial.reason else {})
        return create_trial(
            params=trial.point, distributions=self._distributions, user_attrs=attributes, **self._outcome(trial)
        )


def _distribution(spec: TuningSpec, axis: str) -> BaseDistribution:
    values = spec.space[axis]
    if isinstance(values, Range):
        kind = IntDistribution if values.whole else FloatDistribution
        return kind(values.low, values.high, log=values.log)
    return CategoricalDistribution(spec.labels(axis))
