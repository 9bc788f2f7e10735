"""What comes next in a study, and what is known already.

Every trial has a folder, named by all that decides its result, with a record of its state: a trial that is over is
never run again, also where the database is lost or belongs to another study of the same training. The Optuna study
is what samplers learn from and what its dashboard shows.
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
"""What a trial of the database says beside its parameters."""

_ANEW = "move that file away, and the study is made anew from the folders of its trials"

Prepare = Callable[[dict[str, Any], int], TrialJob]
"""What makes a job of a point and a seed. Of points that are the same model it makes the job of one of them, of the one
that it is asked for first: equal folders mean equal trainings."""


def open_storage(url: str) -> BaseStorage:
    """The database at an SQLAlchemy URL, or in a journal file at a path.

    A database's password is what the environment variable `SHARELOCK_OPTUNA_PASSWORD` holds: a URL is stored.

    Raises:
        RequestError: no database answers there, or the journal is damaged.
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
    # Optuna raises what it comes upon where the records do not follow from each other.
    except (LookupError, ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{path} cannot be read ({type(error).__name__}: {reason}): {_ANEW}") from None


def _drop_torn_line(journal: Path) -> None:
    """Takes from a journal the last line, where the process that wrote it was killed before its end.

    Optuna reads on behind such a line, until another one has been appended to it.

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
            raise RequestError(f"line {damaged + 1} of {journal} is damaged: {_ANEW}")
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
class _Begun:
    """A trial that a process has, and its twin in the database."""

    job: TrialJob
    twin: optuna.Trial


class StudyQueue:
    """Hands out trials until all are over.

    Args:
        name: of the study in the database. It must differ wherever trials could not be compared.
        folder: where the folders of the trials lie.
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
        self._begun: dict[str, _Begun] = {}
        self._again: deque[Trial] = deque()
        """Trials that were begun and are not over."""
        self._asked: dict[str, optuna.Trial] = {}
        """Twins of trials that are about to begin, by folder."""
        self._points: dict[str, dict[str, Any]] = {}
        """Points that a sampler gave, by the folder of their first seed."""
        self.doubles: list[Double] = []
        """Points that are the same model as another one."""
        self._left = self._all()
        self._take_over(folder)
        if spec.sampler == "grid":
            for point in spec.points():
                self._note_double(point, self._prepare(point, spec.seeds[0]))

    @property
    def trials(self) -> list[Trial]:
        """Those that are over."""
        return list(self._known.values())

    @property
    def total(self) -> int:
        """How many there will be, at most."""
        points = self._spec.trials or sum(1 for _ in self._spec.points()) - len(self.doubles)
        return points * len(self._spec.seeds)

    def next(self) -> TrialJob | None:
        """A trial to run now, which may have a checkpoint to go on from; None where all are handed out."""
        while self._again:
            trial = self._again.popleft()
            if trial.run not in self._begun:
                return self._begin(self._prepare(trial.point, trial.seed))
        for job in self._left:
            if job.trial.run not in self._known and job.trial.run not in self._begun:
                return self._begin(job)
        return None

    def report(self, run: str, row: dict[str, Any]) -> None:
        """Shows the database how far a trial is, by a validation of its metrics."""
        if len(self._spec.objective) == 1:
            self._begun[run].twin.report(row[self._spec.monitored], int(row["step"]))

    def tell(self, trial: Trial) -> None:
        """Takes note of how a trial ended."""
        twin = self._begun.pop(trial.run).twin
        if trial.reason:
            twin.set_user_attr(_REASON, trial.reason)
        self._study.tell(twin, **self._outcome(trial))
        self._known[trial.run] = trial
        write_hparams(trial)

    def end(self, run: str, rows: list[dict[str, Any]], state: State, reason: str) -> Trial:
        """Records a trial that did not do so itself: it was pruned, or its process was lost."""
        trial = ended_early(self._begun[run].job.trial, rows, state, reason)
        write_trial(trial)
        self.tell(trial)
        return trial

    def _all(self) -> Iterator[TrialJob]:
        """Every trial of the study, in order. A sampler is asked for a point when it is due."""
        if self._spec.sampler == "grid":
            # Seed after seed, so that a study that is cut short has a whole grid first.
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
        """The point that the sampler wants next; None where it is none that the recipe can be, or is known."""
        # Seeded by the point's own number: the points of a random search never depend on when it was interrupted.
        kinds = {"random": RandomSampler, "tpe": partial(TPESampler, constant_liar=True)}
        self._study.sampler = kinds[self._spec.sampler](seed=index)
        twin = self._study.ask(self._distributions)
        point = dict(twin.params)
        try:
            job = self._prepare(point, self._spec.seeds[0])
        except RequestError as error:
            twin.set_user_attr(_REASON, str(error))
            self._study.tell(twin, state=TrialState.FAIL)
            return None
        run = job.trial.run
        if run in self._points:
            if self._note_double(point, job):
                twin.set_user_attr(_SAME_AS, run)
            known = self._known.get(run)
            self._study.tell(twin, **(self._outcome(known) if known else {"state": TrialState.FAIL}))
            return None
        self._points[run] = point
        self._asked[run] = twin
        return point

    def _note_double(self, point: dict[str, Any], job: TrialJob) -> bool:
        """Whether the job made of a point is that of another one."""
        is_double = job.trial.point != point
        if is_double and not any(double.point == point for double in self.doubles):
            self.doubles.append(Double(point=point, same_as=job.trial.point))
        return is_double

    def _begin(self, job: TrialJob) -> TrialJob:
        run = job.trial.run
        twin = self._asked.pop(run, None)
        if twin is None:
            self._study.enqueue_trial(job.trial.point)
            twin = self._study.ask(self._distributions)
        twin.set_user_attr(_RUN, run)
        twin.set_user_attr(_SEED, job.trial.seed)
        self._begun[run] = _Begun(job, twin)
        write_trial(job.trial)
        return job

    def _take_over(self, folder: str) -> None:
        """Learns from folders and database what an earlier process has left."""
        in_database = self._study.get_trials()
        twins = {twin.user_attrs.get(_RUN, ""): twin for twin in in_database}
        records = [read_trial(storage.join(folder, name)) for name in storage.names(folder)]
        # Those that are over come first, so that they stand for their doubles.
        for record in sorted(filter(None, records), key=lambda record: not record.over):
            job = self._own(record)
            if job is None:
                continue
            trial = record.model_copy(update={"without_effect": job.trial.without_effect})
            self._points[self._prepare(trial.point, self._spec.seeds[0]).trial.run] = trial.point
            twin = twins.get(trial.run)
            if not trial.over:
                self._again.append(trial)
                if twin is not None and twin.state == TrialState.RUNNING:
                    self._asked[trial.run] = self._resumed(twin.number)
                continue
            self._known[trial.run] = trial
            if twin is None:
                self._study.add_trial(self._twin_of(trial))
            elif not twin.state.is_finished():
                self._study.tell(twin.number, **self._outcome(trial))
        for twin in in_database:
            if _SAME_AS in twin.user_attrs:
                self._note_double(dict(twin.params), self._prepare(dict(twin.params), self._spec.seeds[0]))
        for twin in self._study.get_trials(states=(TrialState.RUNNING,)):
            if twin.user_attrs.get(_RUN) not in self._asked:
                self._study.tell(twin.number, state=TrialState.FAIL)

    def _resumed(self, number: int) -> optuna.Trial:
        """The running trial of this number in the database."""
        study = self._database.get_study_id_from_name(self._study.study_name)
        return optuna.Trial(self._study, self._database.get_trial_id_from_study_id_trial_number(study, number))

    def _own(self, trial: Trial) -> TrialJob | None:
        """The job of a record; None where this study would not run the same, to the last setting."""
        if trial.point.keys() != self._spec.space.keys() or trial.seed not in self._spec.seeds:
            return None
        if not all(self._holds(axis, value) for axis, value in trial.point.items()):
            return None
        job = self._prepare(trial.point, trial.seed)
        return job if job.trial.run == trial.run else None

    def _holds(self, axis: str, value: Any) -> bool:
        values = self._spec.space[axis]
        if isinstance(values, Range):
            return isinstance(value, int | float) and values.low <= value <= values.high
        return value in (self._spec.labels(axis) or ())

    def _outcome(self, trial: Trial) -> dict[str, Any]:
        """State and values of a trial, as the database has them."""
        state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)
        values = [trial.values.get(name, math.nan) for name in self._spec.objective]
        if state != TrialState.COMPLETE or not all(map(math.isfinite, values)):
            return {"state": state if state == TrialState.PRUNED else TrialState.FAIL}
        return {"state": state, "values": values}

    def _twin_of(self, trial: Trial) -> FrozenTrial:
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
