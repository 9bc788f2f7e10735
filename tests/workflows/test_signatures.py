"""`evaluate` finds test images that training has too, from features alone, and shows them while they can be read."""

import io
import shutil
from pathlib import Path

import pytest

import support
from pages import Page
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows.evaluate import evaluate
from sharelock_ray.workflows.report import report

WORDS = ("red", "green", "blue")


def photograph(seed: int) -> bytes:
    return support.jpeg(tuple((seed * step) % 256 for step in (37, 101, 59)), size=(32 + seed % 7, 32), seed=seed)


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    """A trained run without Ray. The first image of each test class is a training image."""
    members = {}
    for i in range(40):
        members |= {f"{i:06d}.jpg": photograph(i), f"{i:06d}.txt": f"a {WORDS[i % 3]} circle".encode()}
    support.write_tar(tmp_path / "train.tar", members)
    for label, name in enumerate(WORDS):
        for i in range(4):
            path = tmp_path / "test" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(label if i == 0 else 100 + 10 * label + i))
    (tmp_path / "classes.txt").write_text("".join(f"{word} circle\n" for word in WORDS))
    data = {
        "dataset": "made-up",
        "train": {"urls": str(tmp_path / "train.tar")},
        "test": {"format": "class_folders", "path": str(tmp_path / "test")},
        "classes": str(tmp_path / "classes.txt"),
    }
    found = read_recipe(str(support.write_recipe(tmp_path / "recipe.yaml", models, data=data)))
    support.extracted_alone(found)
    support.trained_alone(found, Path(found.output))
    return found


def signatures(recipe: Recipe) -> dict:
    return {found.name: found for found in evaluate(recipe).signatures}


def test_training_images_in_the_test_are_said_and_shown_as_pairs(recipe: Recipe, said: io.StringIO) -> None:
    found = signatures(recipe)["training_duplicates"]
    assert found.present
    assert f"evaluate: test images in the training set: {found.statement}" in said.getvalue()
    # A network with random weights sees colours, so others may be near too.
    assert {(pair.test, pair.training) for pair in found.pairs[:3]} == {
        (f"{name}/0.jpg", f"train/{i:06d}") for i, name in enumerate(WORDS)
    }
    assert all(pair.cosine == pytest.approx(1, abs=1e-5) for pair in found.pairs[:3])
    assert all(pair.test_thumbnail and pair.training_thumbnail for pair in found.pairs)
    summary = report(recipe)
    page = Page(Path(summary.page).read_text())
    assert found.statement in page.text
    assert sum(tag == "img" and a["alt"] in ("test image", "training image") for tag, a in page.tags) == 2 * found.found
    assert ("failure: test images in the training set", found.statement) in summary.rows()
    (shown,) = [each for each in summary.as_json()["evaluation"]["signatures"] if each["name"] == found.name]
    assert shown["present"]
    assert "test_thumbnail" not in shown["pairs"][0]


def test_training_images_are_not_needed(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "train.tar").unlink()
    found = signatures(recipe)["training_duplicates"]
    assert all(pair.training_thumbnail is None for pair in found.pairs)
    assert all(pair.test_thumbnail for pair in found.pairs)
    assert "training: train/000000" in Page(Path(report(recipe).page).read_text()).text


def test_training_features_may_be_gone(recipe: Recipe) -> None:
    shutil.rmtree(Path(recipe.output) / "features" / "made-up" / "train")
    found = signatures(recipe)
    assert "training_duplicates" not in found
    assert found["wrong_class_order"].images == 6


def test_another_models_training_is_not_known(recipe: Recipe) -> None:
    spec = recipe.evaluation.model_copy(update={"model": recipe.run.best})
    assert "training_duplicates" not in signatures(recipe.model_copy(update={"evaluation": spec}))
