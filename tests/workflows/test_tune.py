"""A recipe's study, from `sharelock tune` to its page: refused in time, scored alike, whole after a kill."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import optuna
import pytest

import losses
import support
from sharelock_ray.config import content_hash
from sharelock_ray.documents import read_document
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.manifest import read_manifest
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import DataSpec, Recipe
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.matched import Matched
from sharelock_ray.study.queue import StudyQueue, open_storage
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.study.trial_job import run_trial
from sharelock_ray.study.trials import Study, Trial, write_trial
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report_study
from sharelock_ray.workflows.tune import Preparation, point_recipe, trials_folder, tune

DEPTHS = {"alignment.language.depth": [1, 2]}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A recipe file whose features are there."""
    path = support.write_recipe(tmp_path_factory.mktemp("run") / "tiny.yaml", models)
    support.extracted_alone(read_recipe(str(path)))
    return path


def study_of(path: Path, **tuning: object) -> Recipe:
    return read_recipe(str(path), [f"tuning={json.dumps({'space': DEPTHS} | tuning)}"])


def trial_files(recipe: Recipe) -> list[Trial]:
    return [Trial.model_validate_json(path.read_text()) for path in Path(recipe.output).glob("trials/*/trial.json")]


class TestRefusals:
    def test_a_recipe_without_a_study(self, extracted: Path) -> None:
        with pytest.raises(RequestError, match="the recipe has no study: add `tuning`"):
            tune(read_recipe(str(extracted)))

    def test_a_point_that_is_no_valid_recipe_before_anything_runs(self, extracted: Path) -> None:
        recipe = study_of(extracted, space={"alignment.language.depth": [1, 99]})
        with pytest.raises(RequestError, match=r"`alignment\.language\.depth`: .*less than or equal to 16"):
            tune(recipe)
        assert not (Path(recipe.output) / "trials").exists()

    def test_an_encoder_that_the_recipe_has_not(self, extracted: Path) -> None:
        with pytest.raises(RequestError, match=r"`tuning\.space\.language` names gpt, but `encoders` has tiny-decoder"):
            tune(study_of(extracted, space={"language": ["tiny-decoder", "gpt"]}))

    def test_features_that_are_not_extracted(self, extracted: Path) -> None:
        space = {"encoders.1.pooling": ["last", "mean"]}
        with pytest.raises(RequestError, match=r"tiny-decoder-\w{8} does not exist: run `sharelock extract`"):
            tune(study_of(extracted, space=space))

    def test_zero_shot_without_classes(self, tmp_path: Path, models: Path) -> None:
        data = {"dataset": "mine", "train": {"urls": "nowhere/*.tar"}}
        path = support.write_recipe(tmp_path / "tiny.yaml", models, data=data)
        with pytest.raises(RequestError, match="zero_shot needs images with class names"):
            tune(study_of(path, objective="zero_shot"))

    def test_labels_that_no_class_has_before_anything_runs(self, extracted: Path, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("red circle\nred square\n")
        recipe = study_of(extracted)
        train, test = (recipe.splits[split].model_dump() for split in ("train", "test"))
        data = {"dataset": "shapes", "train": train, "test": test, "classes": str(tmp_path / "classes.txt")}
        named = recipe.model_copy(update={"data": DataSpec.model_validate(data)})
        with pytest.raises(RequestError, match="but 2 classes are named"):
            tune(named)
        assert not (Path(recipe.output) / "trials").exists()

    def test_a_folder_without_a_study(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="holds no study: run `sharelock tune`"):
            report_study(str(tmp_path))


def test_a_point_may_choose_among_encoders_and_set_fields(extracted: Path, models: Path) -> None:
    encoders = read_recipe(str(extracted)).encoders
    other = support.tiny_language(models, "encoder")
    both = {"alignment.vision": {"depth": 1, "width": 8}, "alignment.dim": 8}
    recipe = read_recipe(str(extracted)).model_copy(
        update={
            "encoders": (*encoders, other),
            "tuning": TuningSpec(space={"language": ["tiny-decoder", "tiny-encoder"], "direction": {"both": both}}),
        }
    )
    chosen = point_recipe(recipe, {"language": "tiny-encoder", "direction": "both"})
    assert chosen.language == other
    assert (chosen.alignment.vision.depth, chosen.alignment.dim) == (1, 8)


class TestDoubles:
    """At depth 1 there is no hidden layer: all activations and widths are one model."""

    SPACE: ClassVar = {
        "alignment.language.depth": [1, 2],
        "alignment.language.activation": ["relu", "gelu"],
        "alignment.language.width": [8, 16],
    }

    @pytest.fixture
    def recipe(self, tmp_path: Path) -> Recipe:
        path = support.write_study(tmp_path / "study.yaml", str(tmp_path / "run"))
        return read_recipe(path, [f"tuning={json.dumps({'space': self.SPACE, 'seeds': [0, 1]})}"])

    @staticmethod
    def queue(recipe: Recipe, **tuning: object) -> StudyQueue:
        spec = TuningSpec.model_validate(recipe.tuning.model_dump() | tuning)
        changed = recipe.model_copy(update={"tuning": spec})
        journal = f"{recipe.output}/optuna.journal"
        return StudyQueue("study", spec, trials_folder(recipe), journal, Preparation(changed, spec))

    @staticmethod
    def run(queue: StudyQueue, most: int = 99) -> list[Trial]:
        done: list[Trial] = []
        while len(done) < most and (job := queue.next()) is not None:
            done.append(job.trial.model_copy(update={"state": "finished", "values": {"validation_loss": 1.0}}))
            write_trial(done[-1])
            queue.tell(done[-1])
        return done

    def test_are_trained_once_with_every_seed(self, recipe: Recipe) -> None:
        queue = self.queue(recipe)
        trials = self.run(queue)
        assert len(trials) == queue.total == 2 * 5
        shallow = [t for t in trials if t.point["alignment.language.depth"] == 1]
        assert [(t.seed, t.point) for t in shallow] == [(seed, queue.doubles[0].same_as) for seed in (0, 1)]
        idle = {t.without_effect for t in shallow}, {t.without_effect for t in trials if t not in shallow}
        assert idle == ({("alignment.language.activation", "alignment.language.width")}, {()})
        assert [double.point["alignment.language.depth"] for double in queue.doubles] == [1] * 3

    def test_change_no_name_of_what_is_trained(self, recipe: Recipe) -> None:
        for trial in self.run(self.queue(recipe)):
            known = point_recipe(recipe, trial.point)
            digests = [read_manifest(Inputs(known).uri("train", e)).digest for e in (known.vision, known.language)]
            # Later fields have a default that is not hashed.
            asked = known.training.model_dump(mode="json", exclude={"training_pairs"}) | {"seed": trial.seed}
            assert Path(trial.run).name == content_hash(asked, digests, None)

    def test_of_an_older_study_stand_for_each_other(self, recipe: Recipe) -> None:
        first = self.run(self.queue(recipe), most=1)[0]
        Path(f"{recipe.output}/optuna.journal").unlink()
        # As if the axis had had its values in another order.
        turned = self.SPACE | {"alignment.language.activation": ["gelu", "relu"]}
        again = self.queue(recipe, space=turned)
        assert [t.run for t in again.trials] == [first.run]
        assert len(self.run(again)) == 9

    def test_that_a_sampler_gives_are_known_also_after_an_interruption(self, recipe: Recipe) -> None:
        asked = {"sampler": "random", "trials": 30, "seeds": [0]}
        queue = self.queue(recipe, **asked)
        trials = self.run(queue)
        assert len(trials) == 5
        assert len(queue.doubles) == 3
        again = self.queue(recipe, **asked)
        assert self.run(again) == []
        assert [d.point for d in again.doubles] == [d.point for d in queue.doubles]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_killed_study_goes_on_and_ends_in_a_page(extracted: Path, said: io.StringIO) -> None:
    asked = {"seeds": [0, 1], "objective": "zero_shot"}
    longer = ["alignment.steps=200", "alignment.evaluate_every=10"]
    recipe = read_recipe(str(extracted), [f"tuning={json.dumps({'space': DEPTHS} | asked)}", *longer])
    first = kill_in_the_middle(extracted, [f"tuning={json.dumps({'space': DEPTHS} | asked)}", *longer], recipe)
    kept = {path: path.stat().st_mtime_ns for path in Path(recipe.output).glob("trials/*/training.json")}
    summary = tune(recipe)
    there = re.search(r"tune: (\d) of 4 trials are already done", said.getvalue())
    # A trial that was in its last steps may have ended after its driver.
    assert there is not None
    assert int(there[1]) >= len(first) >= 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    trials = trial_files(recipe)
    assert [trial.state for trial in trials] == ["finished"] * 4
    # The same questions to every trial.
    assert all(0 <= trial.values["zero_shot"] <= 1 and 0 <= trial.values["recall_at_1"] <= 1 for trial in trials)
    study = Study.model_validate_json((Path(recipe.output) / "study.json").read_text())
    twins = optuna.load_study(study_name=study.name, storage=open_storage(study.storage)).trials
    assert [twin.state.name for twin in twins] == ["COMPLETE"] * 4
    assert sorted(twin.value for twin in twins) == sorted(trial.values["zero_shot"] for trial in trials)
    # The page, the table and the winner are of the same trials.
    assert Path(summary.page).name == "study.html"
    rows = list(csv.DictReader((Path(recipe.output) / "study.csv").open()))
    assert {row["run"] for row in rows} == {trial.run for trial in trials}
    winner = read_recipe(str(Path(recipe.output) / "winner.yaml"))
    assert winner.tuning is None
    # What chose it is said before the trials run, with the result, and beside the winner.
    assert "tune: selects by zero-shot accuracy on the test split" in said.getvalue()
    assert "selected on the test split" in summary.verdict
    assert "selected on the test split" in winner.note
    assert winner.alignment.language.depth == summary.points[0].point["alignment.language.depth"]
    # It trains on the features that are there, in a folder where no other training is.
    assert winner.output == f"{recipe.output}/winner"
    assert Inputs(winner).uri("train", winner.language) == Inputs(recipe).uri("train", recipe.language)
    assert tune(recipe) == summary


@pytest.mark.slow
def test_a_lost_node_costs_no_trial(tmp_path: Path) -> None:
    path = support.write_study(tmp_path / "study.yaml", str(tmp_path / "run"), steps=300)
    subprocess.run([sys.executable, losses.__file__, "study", str(tmp_path)], check=True, timeout=240)
    recipe = read_recipe(path)
    trials = trial_files(recipe)
    assert [trial.state for trial in trials] == ["finished"] * 4
    for trial in trials:
        folder = tmp_path / "alone" / Path(trial.run).name
        alone = support.trained_alone(point_recipe(recipe, trial.point), folder, trial.seed)
        assert RunFolder(trial.run).metrics() == alone.metrics()


@pytest.mark.usefixtures("local_ray")
def test_a_study_of_which_nothing_finished_is_one_line(extracted: Path) -> None:
    recipe = study_of(extracted, space={"alignment.learning_rate": [1e30]})
    with pytest.raises(RunError, match=r"none of the 1 trials finished; the first: diverged: the loss is"):
        tune(recipe)


def kill_in_the_middle(path: Path, settings: list[str], recipe: Recipe) -> list[Trial]:
    """`sharelock tune` in a process of its own, until one trial is finished and another has a checkpoint.

    Returns:
        the finished ones.
    """
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    process = support.start("tune", str(path), *arguments)

    def in_the_middle() -> bool:
        running = [trial for trial in trial_files(recipe) if trial.state == "running"]
        begun = [trial for trial in running if (Path(trial.run) / "last" / "checkpoint.json").exists()]
        return bool(begun) and len(trial_files(recipe)) > len(running)

    support.wait_for(in_the_middle, process)
    support.kill(process)
    return [trial for trial in trial_files(recipe) if trial.state == "finished"]


def test_matched_models_are_compared_by_the_readings_that_validation_chooses(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real small study, whose trials run in this process."""
    encoders = [support.tiny_vision(models), *(support.tiny_language(models, kind) for kind in ("encoder", "decoder"))]
    dumped = [encoder.model_dump(mode="json") for encoder in encoders]
    for encoder in dumped[1:]:
        encoder["pooling"] = ["mean", "last"]
    pair = [str(models / f"{kind}-0") for kind in ("encoder", "decoder")]
    tuning = {"space": {"language": "*"}, "matched": [pair], "seeds": [0, 1], "objective": "recall_at_1"}
    path = support.write_recipe(tmp_path / "tiny.yaml", models, encoders=dumped, tuning=tuning)
    recipe = read_recipe(str(path), ["alignment.steps=5"])
    support.extracted_alone(recipe)

    def alone(queue: StudyQueue, spec: TuningSpec, *_: object) -> list[Trial]:
        prepare = Preparation(recipe, spec)
        jobs = [prepare(point, seed) for point in spec.points() for seed in spec.seeds]
        return [run_trial(job, lambda row: None) for job in jobs]

    monkeypatch.setattr("sharelock_ray.engine.tuning.tune", alone)
    summary = tune(recipe)
    assert "Encoder minus decoder, each with its chosen reading" in summary.verdict
    study = read_document(Study, f"{recipe.output}/study.json")
    assert {reading.model for reading in study.readings.values()} == set(pair)
    found = read_document(Matched, f"{recipe.output}/matched.json")
    # The test split has classes, so what is chosen and what is compared differ.
    assert found.score == "zero_shot"
    assert [choice.model for choice in found.choices] == pair
    for choice in found.choices:
        of = [trial for trial in study.trials if study.readings[trial.point["language"]].model == choice.model]
        recalls = {
            name: sum(trial.values["recall_at_1"] for trial in of if trial.point["language"] == name)
            for name in {trial.point["language"] for trial in of}
        }
        assert len(recalls) == choice.candidates == 2
        assert recalls[choice.encoder] == max(recalls.values())
    assert [each.pooling for each in found.differences] == [None, "mean", "last"]
    assert "Encoder against decoder" in Path(summary.page).read_text()
