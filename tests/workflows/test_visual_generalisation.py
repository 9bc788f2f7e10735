"""Training on the texts of seen classes, and the score of unseen ones: splits are masks over existing feature sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import support
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.split import ConceptSplit, Removed
from sharelock_ray.engine import training as engine_training
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.result import GeneralisedRecord, ZeroShotRecord
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.recipe.load import read_recipe, with_settings
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report.comparison import Model, run_scores
from sharelock_ray.runs import loop
from sharelock_ray.runs.folder import RunFolder, TrainingResult
from sharelock_ray.runs.heads import load_trained_heads
from sharelock_ray.storage import write_json
from sharelock_ray.study.trial_job import run_trial
from sharelock_ray.study.trials import read_trial
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report
from sharelock_ray.workflows.train import train
from sharelock_ray.workflows.tune import Preparation

NAMES = [
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "koi",
    "lynx",
    "mole",
    "newt",
    "owl",
    "pig",
]
UNSEEN, REMOVED = ["cat", "gnu", "jay", "mole"], ["ibis"]
PER_CLASS = {"train": 40, "test": 12}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains in this process."""

    def trained(run: RunFolder, *sets: Any, **_: Any) -> TrainingResult:
        vision, language, spec, _, pairing = sets
        loop.train(run, vision, language, spec, pairing=pairing)
        result = run.result()
        assert result is not None
        return result

    monkeypatch.setattr(engine_training, "train", trained)


def write_split(path: Path, unseen: list[str] = UNSEEN, names: list[str] = NAMES) -> str:
    """A split with one removed class."""
    gone = [Removed(concept=Concept(name=name), evidence=()) for name in REMOVED if name in names]
    sides = {name: name in unseen for name in names if name not in REMOVED}
    split = ConceptSplit(
        rules=Rules(),
        wordnet="3.0",
        seen=tuple(Concept(name=name) for name, is_unseen in sides.items() if not is_unseen),
        unseen=tuple(Concept(name=name) for name, is_unseen in sides.items() if is_unseen),
        removed=tuple(gone),
    )
    write_json(str(path), split.content())
    return str(path)


def write_features(recipe: Recipe) -> None:
    """Images and texts of classes with a meaning in three dimensions, so that unseen classes can be told apart."""
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(len(NAMES), 3))
    meaning /= np.linalg.norm(meaning, axis=1, keepdims=True)
    to_image, to_text = generator.normal(size=(3, 16)), generator.normal(size=(3, 12))
    inputs = Inputs(recipe)
    for split, count in PER_CLASS.items():
        labels = np.repeat(np.arange(len(NAMES)), count)
        images = (meaning[labels] + 0.15 * generator.normal(size=(len(labels), 3))) @ to_image
        keys = [f"{NAMES[label]}/{split}-{i:04d}.jpg" for i, label in enumerate(labels)]
        chunk = EncodedChunk({"key": keys, "label": labels.tolist()}, images.astype(np.float32))
        support.write_parts(inputs.uri(split, recipe.vision), recipe.vision, [[chunk]], "animals", split=split)
    assert inputs.prompts is not None
    samples = support.read_source(inputs.prompts.source)
    rows = [(s.key, i, text, label) for label, s in enumerate(samples) for i, text in enumerate(s.captions)]
    texts = (meaning[[row[3] for row in rows]] + 0.02 * generator.normal(size=(len(rows), 3))) @ to_text
    columns = dict(zip(("key", "caption_id", "text"), ([row[i] for row in rows] for i in range(3)), strict=True))
    uri = inputs.uri(inputs.prompts.name, recipe.language)
    support.write_parts(uri, recipe.language, [[EncodedChunk(columns, texts.astype(np.float32))]], "animals")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe of the protocol, with features of all classes and no inputs behind them."""
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    texts = {name: [f"a {name}.", f"the {name} is an animal."][: 1 + place % 2] for place, name in enumerate(NAMES)}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    known = {"image_size": 8, "resize": 8, "crop_mode": "center", "interpolation": "bicubic"}
    content = {
        "name": "generalisation",
        "output": str(tmp_path / "run"),
        "data": {
            "dataset": "animals",
            "train": {"format": "class_folders", "path": str(tmp_path / "train")},
            "test": {"format": "class_folders", "path": str(tmp_path / "test")},
            "classes": str(tmp_path / "classes.txt"),
            "class_texts": str(tmp_path / "texts.json"),
            "concepts": {"split": write_split(tmp_path / "split.json"), "validation_fraction": 0.2},
        },
        "encoders": [
            {"modality": "vision", "name": "v", "model": "none", "mean": [0.5] * 3, "std": [0.5] * 3, **known},
            {"modality": "language", "name": "l", "model": "none"},
        ],
        "alignment": {
            "language": {"depth": 1},
            "positives": "label",
            "global_batch_size": 128,
            "steps": 100,
            "learning_rate": 0.02,
            "warmup_steps": 5,
            "evaluate_every": 50,
            "validation_fraction": 0.2,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = read_recipe(str(tmp_path / "recipe.yaml"))
    write_features(recipe)
    return recipe


def records(recipe: Recipe) -> tuple[GeneralisedRecord, ZeroShotRecord]:
    found = evaluate(recipe).records
    unseen, zero_shot = (next(r for r in found if isinstance(r, kind)) for kind in (GeneralisedRecord, ZeroShotRecord))
    return unseen, zero_shot


class TestProtocol:
    def test_unseen_classes_are_told_apart_without_their_images_or_texts(self, recipe: Recipe, tmp_path: Path) -> None:
        result = train(recipe)
        sides = Inputs(recipe).sides
        assert sides is not None
        assert [NAMES[label] for label in sides.unseen] == UNSEEN
        assert [NAMES[label] for label in sides.removed] == REMOVED
        assert (len(sides.seen), len(sides.validation)) == (9, 2)
        # Images of five unseen and removed classes, and of two for validation, are in the features and left out.
        assert result.training_pairs + result.validation_pairs == 9 * 40
        assert (result.left_out, result.lost) == (7 * 40, {"vision": 0, "language": 0})
        record, zero_shot = records(recipe)
        found = record.result
        assert (found.seen_classes, found.unseen_classes, found.images) == (11, 4, 4 * 12)
        assert found.per_class.keys() == set(UNSEEN)
        assert found.zero_shot.value > 0.7 > found.chance == 0.25
        assert found.generalised is not None
        assert found.generalised.seen_images == 11 * 12
        assert found.generalised.calibrated is not None
        assert record.templates == zero_shot.templates == ()
        assert record.concepts == Inputs(recipe).pairing.concepts
        rows = dict(report(recipe).rows())
        assert rows["mean per class among 4 unseen classes"].startswith(f"{found.zero_shot.value:.1%}")
        page = (tmp_path / "run" / "report.html").read_text()
        assert f"split of concepts {record.concepts}" in page
        assert "AUSUC" in page
        scores = run_scores(Model("run"), evaluate(recipe).records, "here")
        title = next(score.measure.title for score in scores if score.main)
        assert title == f"animals (split {record.concepts}): unseen mean per class"

    def test_without_validation_classes_there_is_no_calibration(self, recipe: Recipe) -> None:
        plain = with_settings(recipe, {"data.concepts": recipe.data.concepts.split})
        train(plain)
        found = records(plain)[0].result.generalised
        assert found is not None
        assert found.calibrated is None

    def test_templates_are_texts_of_classes_too(self, recipe: Recipe) -> None:
        templates = with_settings(recipe, {"data.class_texts": "templates", "evaluation.templates": ["a {}.", "{}"]})
        templates = with_settings(templates, {"output": f"{recipe.output}-2"})
        write_features(templates)
        train(templates)
        record, zero_shot = records(templates)
        assert record.templates == zero_shot.templates == ("a {}.", "{}")
        assert record.result.zero_shot.value > 0.7

    def test_nothing_is_extracted_again_for_another_split(self, recipe: Recipe, tmp_path: Path) -> None:
        kept = {p: p.stat().st_mtime_ns for p in Path(recipe.features_folder).rglob("*")}
        other = with_settings(
            recipe,
            {
                "data.concepts.split": write_split(tmp_path / "other.json", ["ant", "bee", "owl"]),
                "output": str(tmp_path / "other"),
                "features_of": recipe.output,
            },
        )
        for each in (recipe, other):
            train(each)
        assert {p: p.stat().st_mtime_ns for p in Path(recipe.features_folder).rglob("*")} == kept
        first, second = (load_trained_heads(each.run.best).checkpoint.pairing for each in (recipe, other))
        assert first["concepts"] != second["concepts"]
        assert set(records(other)[0].result.per_class) == {"ant", "bee", "owl"}


class TestIdentity:
    def test_another_split_is_another_run(self, recipe: Recipe, tmp_path: Path) -> None:
        train(recipe)
        concepts = Inputs(recipe).pairing.concepts
        other = with_settings(recipe, {"data.concepts.split": write_split(tmp_path / "other.json", ["ant", "bee"])})
        now = Inputs(other).pairing.concepts
        with pytest.raises(RequestError, match=f"pairing.concepts: {concepts} there, {now} now"):
            train(other)
        with pytest.raises(RequestError, match=f"was not trained by the split of concepts {now}, so its unseen"):
            evaluate(other)
        with pytest.raises(RequestError, match=r"pairing\.classes: \w+ there, \w+ now"):
            train(with_settings(recipe, {"data.concepts.validation_fraction": 0.3}))

    def test_trials_of_a_study_are_scored_on_unseen_classes(self, recipe: Recipe) -> None:
        study = with_settings(recipe, {"tuning": {"space": {"alignment.learning_rate": [0.02]}, "seeds": [0, 1]}})
        prepare = Preparation(study, study.tuning)
        jobs = [prepare({"alignment.learning_rate": 0.02}, seed) for seed in (0, 1)]
        plain = with_settings(study, {"data.concepts": None})
        assert jobs[0].trial.run != Preparation(plain, plain.tuning)({"alignment.learning_rate": 0.02}, 0).trial.run
        values = []
        for job in jobs:
            assert run_trial(job, lambda row: None).state == "finished"
            trial = read_trial(job.trial.run)
            assert trial is not None
            values.append(trial.values)
        alone = with_settings(recipe, {"output": jobs[0].trial.run, "features_of": recipe.output, "alignment.seed": 0})
        assert values[0]["zero_shot"] == pytest.approx(records(alone)[0].result.zero_shot.value)
        # Images of a class share its text, and each is right if that is the nearest.
        assert all(0.5 < each["recall_at_1"] <= 1 for each in values)

    def test_other_texts_of_classes_are_another_evaluation(self, recipe: Recipe, tmp_path: Path) -> None:
        train(recipe)
        asked = evaluate(recipe).request
        texts = json.loads((tmp_path / "texts.json").read_text()) | {"ant": "another text"}
        (tmp_path / "more.json").write_text(json.dumps(texts))
        other = with_settings(recipe, {"data.class_texts": str(tmp_path / "more.json")})
        write_features(other)
        assert evaluate(other).request.classes != asked.classes


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (NAMES[:-1], r"is not of these 16 classes: 1 classes are not in it \(pig\)"),
            ([*NAMES, "yak"], r"1 of its concepts are no class \(yak\)"),
            ([*NAMES[:-1], "swine"], r"1 of its concepts are no class \(swine\) and 1 classes are not in it \(pig\)"),
        ],
    )
    def test_a_split_of_other_classes(self, recipe: Recipe, tmp_path: Path, names: list[str], message: str) -> None:
        other = with_settings(recipe, {"data.concepts.split": write_split(tmp_path / "other.json", names=names)})
        self.refused(lambda: train(other), message)
        assert not (tmp_path / "run" / "training-request.json").exists()

    def test_features_with_other_labels(self, recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("\n".join(NAMES[:10]))
        split = write_split(tmp_path / "few.json", ["cat", "gnu"], NAMES[:10])
        few = with_settings(recipe, {"data.concepts": split})
        chunk = EncodedChunk(
            {"key": [f"classes-00000/{i:09d}" for i in range(10)], "caption_id": [0] * 10, "text": NAMES[:10]},
            np.zeros((10, 12), np.float32),
        )
        support.write_parts(Inputs(few).training_uris()[1], recipe.language, [[chunk]], "animals")
        self.refused(lambda: train(few), "go from 0 to 15, but .* has the texts of 10 classes")

    def test_a_fraction_that_leaves_no_two_validation_classes(self, recipe: Recipe) -> None:
        few = with_settings(recipe, {"data.concepts.validation_fraction": 0.1})
        self.refused(lambda: train(few), "takes 1 of 11 seen classes, and should leave some and take two at least")

    def test_a_split_that_is_missing(self, recipe: Recipe, tmp_path: Path) -> None:
        missing = with_settings(recipe, {"data.concepts.split": str(tmp_path / "no.json")})
        self.refused(lambda: train(missing), "split of concepts")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data.classes": None}, "`class_texts` needs `classes`, the names of the labels"),
            ({"data.class_texts": None, "data.classes": None}, "`concepts` needs `classes`, the names of the labels"),
        ],
    )
    def test_recipes_without_names_of_classes(self, recipe: Recipe, changes: dict[str, Any], message: str) -> None:
        self.refused(lambda: with_settings(recipe, changes), message)

    def test_positives_that_nobody_chose(self, tmp_path: Path, recipe: Recipe) -> None:
        content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
        del content["alignment"]["positives"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        self.refused(lambda: read_recipe(str(tmp_path / "recipe.yaml")), "set `alignment.positives`, such as to label")

    @staticmethod
    def refused(call: Callable[[], object], message: str) -> None:
        with pytest.raises(RequestError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
