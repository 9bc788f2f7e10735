"""The queue of a study without Ray: every trial once, over interruptions and lost databases."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.config import content_hash
from sharelock_ray.errors import RequestError
from sharelock_ray.study.queue import StudyQueue, open_storage
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import TrialJob
from sharelock_ray.study.trials import Trial, read_trial, write_trial

GRID = {"space": {"depth": [1, 2], "width": [8, 16]}, "seeds": [0, 1], "objective": "recall_at_1"}
RATE = {"low": 1e-4, "high": 1e-1, "log": True}
TPE = {"space": {"rate": RATE, "depth": [1, 2, 3]}, "sampler": "tpe", "trials": 14, "objective": "recall_at_1"}


class Place:
    """Where a study lives, and what its trials would give."""

    def __init__(self, folder: Path, base: str = "") -> None:
        self.folder, self.base = folder, base
        self.database = str(folder / "optuna.journal")

    def prepare(self, point: dict[str, Any], seed: int) -> TrialJob:
        if point.get("depth") == 3 and point.get("rate", 0) > 0.05:
            raise RequestError("no such recipe")
        run = str(self.folder / "trials" / content_hash(point, seed, self.base))
        trial = Trial(point=point, seed=seed, run=run, state="running")
        return TrialJob(trial=trial, vision="", language="", spec=AlignmentSpec())

    def queue(self, fields: dict[str, Any], name: str = "study") -> StudyQueue:
        spec = TuningSpec.model_validate(fields)
        return StudyQueue(name, spec, str(self.folder / "trials"), self.database, self.prepare)

    def study(self, name: str = "study") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=open_storage(self.database))


def finished(job: TrialJob) -> Trial:
    """As a process leaves it."""
    point = job.trial.point
    value = 1 - abs(point.get("rate", 0) - 0.01) * 10 - 0.01 * point["depth"] + 0.001 * job.trial.seed
    trial = job.trial.model_copy(update={"state": "finished", "values": {"recall_at_1": value, "parameters": 5.0}})
    write_trial(trial)
    return trial


def run(queue: StudyQueue, most: int | None = None) -> list[Trial]:
    """Takes and finishes trials, one after another."""
    done = []
    while (most is None or len(done) < most) and (job := queue.next()) is not None:
        done.append(finished(job))
        queue.tell(done[-1])
    return done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestGrid:
    def test_hands_out_every_point_with_every_seed_once(self, place: Place) -> None:
        queue = place.queue(GRID)
        trials = run(queue)
        assert len({(tuple(t.point.items()), t.seed) for t in trials}) == len(trials) == queue.total == 8
        # A study that is cut short has a whole grid of its first seed.
        assert [t.seed for t in trials] == [0] * 4 + [1] * 4

    def test_the_database_has_all_of_it(self, place: Place) -> None:
        trials = run(place.queue(GRID))
        twins = place.study().get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        assert {(t.user_attrs["run"], t.user_attrs["seed"], t.value) for t in twins} == {
            (t.run, t.seed, t.values["recall_at_1"]) for t in trials
        }
        assert [t.params for t in twins] == [t.point for t in trials]

    def test_what_is_over_is_never_handed_out_again(self, place: Place) -> None:
        first = run(place.queue(GRID), most=3)
        again = place.queue(GRID)
        assert {t.run for t in again.trials} == {t.run for t in first}
        assert not {t.run for t in run(again)} & {t.run for t in first}
        assert place.queue(GRID).next() is None
        assert len(place.study().trials) == 8

    def test_an_interrupted_trial_comes_first_and_keeps_its_entry(self, place: Place) -> None:
        queue = place.queue(GRID)
        run(queue, most=2)
        interrupted = queue.next()
        again = place.queue(GRID)
        assert again.next().trial.run == interrupted.trial.run
        again.tell(finished(interrupted))
        run(again)
        assert [t.state.name for t in place.study().trials] == ["COMPLETE"] * 8

    def test_what_a_process_finished_after_its_driver_died_is_told(self, place: Place) -> None:
        finished(place.queue(GRID).next())
        assert len(place.queue(GRID).trials) == 1
        assert [t.state.name for t in place.study().trials] == ["COMPLETE"]

    def test_a_lost_database_is_made_anew_from_the_folders(self, place: Place) -> None:
        queue = place.queue(GRID)
        first = run(queue, most=3)
        interrupted = queue.next()
        Path(place.database).unlink()
        again = place.queue(GRID)
        assert len(place.study().trials) == 3
        assert again.next().trial.run == interrupted.trial.run
        assert {t.run for t in again.trials} == {t.run for t in first}

    def test_a_larger_space_keeps_what_was_trained(self, place: Place) -> None:
        first = run(place.queue(GRID))
        wider = GRID | {"space": {"depth": [1, 2, 3], "width": [8, 16]}}
        queue = place.queue(wider, "wider")
        assert {t.run for t in queue.trials} == {t.run for t in first}
        assert {t.point["depth"] for t in run(queue)} == {3}
        assert len(place.study("wider").trials) == 12

    def test_trials_of_another_training_are_not_taken_over(self, place: Place, tmp_path: Path) -> None:
        run(place.queue(GRID), most=3)
        assert place.queue(GRID).trials
        assert not Place(tmp_path, base="other").queue(GRID, "other").trials

    @pytest.mark.parametrize(("state", "again"), [("diverged", 0), ("pruned", 0), ("out of memory", 1), ("failed", 1)])
    def test_only_what_may_end_otherwise_is_tried_again(self, place: Place, state: str, again: int) -> None:
        queue = place.queue(GRID)
        job = queue.next()
        queue.end(job.trial.run, [{"step": 5, "validation_loss": 2.0}], state, "it did")
        assert read_trial(job.trial.run).values == {"validation_loss": 2.0}
        run(queue)
        left = run(place.queue(GRID))
        assert [t.run for t in left] == [job.trial.run] * again


class TestSampled:
    def test_tpe_tries_as_many_points_as_asked_each_with_every_seed(self, place: Place) -> None:
        trials = run(place.queue(TPE | {"seeds": [3, 4]}))
        points = {tuple(t.point.items()) for t in trials}
        assert 10 <= len(points) <= 14
        assert len(trials) == 2 * len(points)
        assert all(1e-4 <= t.point["rate"] <= 1e-1 for t in trials)

    def test_points_do_not_depend_on_interruptions(self, tmp_path: Path) -> None:
        random = TPE | {"sampler": "random", "space": {"rate": RATE, "depth": [1, 2]}}
        whole = run(Place(tmp_path / "whole").queue(random))
        broken = Place(tmp_path / "broken")
        parts = [t for most in (3, 4, None) for t in run(broken.queue(random), most)]
        assert [t.point for t in parts] == [t.point for t in whole]

    def test_a_sampler_learns_from_an_earlier_process(self, place: Place) -> None:
        run(place.queue(TPE), most=8)
        again = place.queue(TPE)
        run(again)
        complete = place.study().get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        assert len(complete) == len(again.trials)

    def test_a_point_that_is_no_recipe_is_passed_over(self, place: Place) -> None:
        space = {"rate": {"low": 0.06, "high": 0.09}, "depth": [3]}
        assert run(place.queue(TPE | {"space": space})) == []
        assert {t.user_attrs["reason"] for t in place.study().trials} == {"no such recipe"}

    def test_a_small_space_ends_when_it_repeats_itself(self, place: Place) -> None:
        trials = run(place.queue(TPE | {"space": {"depth": [1, 2]}}))
        assert len(trials) == 2
        assert len(place.study().get_trials(states=(optuna.trial.TrialState.COMPLETE,))) == 14

    def test_two_objectives_have_their_own_directions(self, place: Place) -> None:
        run(place.queue(TPE | {"objective": ["recall_at_1", "parameters"]}))
        assert [d.name for d in place.study().directions] == ["MAXIMIZE", "MINIMIZE"]
        assert place.study().best_trials


def test_any_database_that_sqlalchemy_knows_holds_a_study(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.database = f"sqlite:///{tmp_path}/study.db"
    run(place.queue(GRID), most=3)
    assert len(run(place.queue(GRID))) == 5
    assert len(place.study().trials) == 8


@pytest.mark.parametrize("url", ["nosuch://host/db", "sqlite:////no/such/folder/study.db"])
def test_a_database_that_cannot_be_used_is_one_line(url: str) -> None:
    with pytest.raises(RequestError, match=r"`tuning\.storage`: (nosuch|sqlite) cannot be used: ") as error:
        open_storage(url)
    assert "\n" not in str(error.value)


def test_a_folder_that_vanished_is_trained_anew(tmp_path: Path) -> None:
    place = Place(tmp_path)
    trials = run(place.queue(GRID))
    shutil.rmtree(trials[0].run)
    assert [t.run for t in run(place.queue(GRID))] == [trials[0].run]


def test_a_databases_password_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def connect(*arguments: object, **options: object) -> None:
        asked.append(options["password"])
        raise RuntimeError("no such server")

    monkeypatch.setenv("SHARELOCK_OPTUNA_PASSWORD", "s3cret{}@")
    # What SQLAlchemy gives its arguments to.
    monkeypatch.setattr(sqlite3.dbapi2, "connect", connect)
    with pytest.raises(RequestError, match="sqlite cannot be used: no such server") as error:
        open_storage("sqlite:////tmp/study.db")
    assert set(asked) == {"s3cret{}@"}
    assert "s3cret" not in str(error.value)


class TestJournal:
    """What a process leaves that was killed while it wrote."""

    @pytest.fixture
    def lines(self, place: Place) -> list[bytes]:
        run(place.queue(GRID), most=3)
        return Path(place.database).read_bytes().splitlines(keepends=True)

    @pytest.mark.parametrize("cut", [1, 5, -1])
    def test_a_torn_last_line_is_dropped(self, place: Place, lines: list[bytes], cut: int) -> None:
        Path(place.database).write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        assert len(run(place.queue(GRID))) == 5
        assert [t.state.name for t in place.study().trials].count("COMPLETE") == 8

    def test_so_is_one_that_the_disk_filled_with_zeros(self, place: Place, lines: list[bytes]) -> None:
        Path(place.database).write_bytes(b"".join(lines[:-1]) + b"\0" * 40 + b"\n")
        assert len(run(place.queue(GRID))) == 5

    def test_a_whole_journal_stays_as_it_is(self, place: Place, lines: list[bytes]) -> None:
        open_storage(place.database)
        assert Path(place.database).read_bytes() == b"".join(lines)

    @pytest.mark.parametrize("damaged", [b"{\n", b"5\n", b'{"op_code": 4}\n'])
    def test_a_damaged_line_within_is_named(self, place: Place, lines: list[bytes], damaged: bytes) -> None:
        Path(place.database).write_bytes(b"".join([*lines[:4], damaged, *lines[5:]]))
        with pytest.raises(
            RequestError, match=r"optuna\.journal .*: move that file away, and the study is rebuilt"
        ) as error:
            place.queue(GRID)
        assert "\n" not in str(error.value)
        assert damaged.startswith(b'{"') or str(error.value).startswith("line 5 of ")
        Path(place.database).unlink()
        assert len(place.queue(GRID).trials) == 3
