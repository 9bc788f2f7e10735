"""Encoders, listings and hashes are resolved once for a command, and encoders run where they are fed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support
from sharelock_ray.encoders import spec as spec_module
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import DataSpec, Recipe
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.texts import TextSource
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.study.spec import TuningSpec
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.inputs import Inputs, check_inputs
from sharelock_ray.workflows.train import train
from sharelock_ray.workflows.tune import Preparation


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    data = {"dataset": "mine", "train": {"urls": support.write_pairs(tmp_path / "data", shards=2, samples=40)}}
    return read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))


def with_test(recipe: Recipe, tmp_path: Path) -> Recipe:
    """A test split of class folders, with names."""
    for name in ("blue", "red"):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.jpg").write_bytes(support.jpeg())
    (tmp_path / "classes.txt").write_text("blue circle\nred circle\n")
    test = ClassFolderSource(path=str(tmp_path / "test"))
    data = DataSpec(dataset="mine", train=recipe.data.train, test=test, classes=str(tmp_path / "classes.txt"))
    return recipe.model_copy(update={"data": data})


def test_encoders_run_over_what_feeds_them(recipe: Recipe, tmp_path: Path) -> None:
    inputs = Inputs(with_test(recipe, tmp_path))
    fed = {split.name.partition("-")[0]: [e.modality for e in split.encoders] for split in inputs.all_splits}
    assert fed == {"train": ["vision", "language"], "test": ["vision"], "prompts": ["language"]}
    with pytest.raises(RequestError, match=r"the test split has no captions for tiny-decoder: its source \(class_fold"):
        inputs.open("test", recipe.language)


def test_texts_are_for_language_encoders_alone(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a red circle\n")
    data = recipe.data.model_copy(update={"test": TextSource(path=str(tmp_path / "texts.txt"))})
    inputs = Inputs(recipe.model_copy(update={"data": data}))
    assert [e.modality for e in inputs.splits["test"].encoders] == ["language"]
    without = inputs.of(recipe.model_copy(update={"data": data, "encoders": (recipe.vision,)}))
    with pytest.raises(RequestError, match="the test split provides captions, which no encoder of the recipe takes"):
        check_inputs(list(without.splits.values()))


def test_other_templates_are_another_set_of_prompts(recipe: Recipe, tmp_path: Path) -> None:
    named = with_test(recipe, tmp_path)
    other = named.evaluation.model_copy(update={"templates": ("a {}.",)})
    names = {Inputs(each).prompts.name for each in (named, named.model_copy(update={"evaluation": other}))}
    assert len(names) == 2
    # A recipe without names of classes has none.
    assert Inputs(recipe).prompts is None


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often weights are hashed and sources are listed from now on."""
    calls: Counter[str] = Counter()

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> object:
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(spec_module, "weights_digest", count("hash", spec_module.weights_digest))
    monkeypatch.setattr(WebDatasetSource, "shards", count("list", WebDatasetSource.shards))
    return calls


@pytest.mark.usefixtures("local_ray")
def test_a_command_hashes_weights_once_and_lists_a_source_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    extract(recipe)
    assert calls == {"hash": 2, "list": 1}
    calls.clear()
    train(recipe)
    assert calls == {"hash": 2}
    calls.clear()
    evaluate(recipe)
    # Once for the pictures of its examples.
    assert calls == {"hash": 2, "list": 1}


def test_a_study_hashes_weights_once_for_all_its_points(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    support.write_features_of(recipe)
    spec = TuningSpec(space={"alignment.language.depth": [1, 2], "alignment.language.width": [8, 16]})
    study = recipe.model_copy(update={"tuning": spec})
    calls = counted(monkeypatch)
    prepare = Preparation(study, spec)
    runs = {prepare(point, seed).trial.run for point in spec.points() for seed in (0, 1)}
    # At depth 1 all widths are one model.
    assert len(runs) == 6
    assert calls == {"hash": 2}
