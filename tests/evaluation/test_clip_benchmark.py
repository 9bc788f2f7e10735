"""CLIP-Benchmark's own command line evaluates our models, and gives the numbers of our own evaluation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import support
from sharelock_ray.evaluation import clip_benchmark
from sharelock_ray.recipe.load import parse_recipe, read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.workflows import extract
from sharelock_ray.workflows.evaluate import evaluate

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
NAMES = ["red circle", "green circle", "blue circle", "red square", "green square", "blue square"]
TEMPLATES = ["a photo of a {c}.", "the {c} in a picture"]
IMAGES = 40


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Recipe:
    """A trained run. Its vision encoder resizes to more pixels than it crops, and its images are larger still."""
    folder = tmp_path_factory.mktemp("run")
    encoders = [support.tiny_vision(models, resize=36), support.tiny_language(models)]
    data = {"dataset": "mine", "train": {"urls": support.write_pairs(folder / "data", shards=2, samples=40)}}
    changes = {"encoders": [each.model_dump(mode="json") for each in encoders], "data": data}
    recipe = read_recipe(str(support.write_recipe(folder / "tiny.yaml", models, **changes)))
    support.extracted_alone(recipe)
    support.trained_alone(recipe, Path(recipe.output))
    return recipe


def best(recipe: Recipe) -> str:
    return RunFolder(recipe.output).best


def picture(i: int) -> bytes:
    return support.jpeg(COLOURS[i % 3], size=(48, 40 + i % 9), seed=i)


def write_wds(folder: Path, texts: dict[str, list[bytes]], **files: str) -> Path:
    """Writes a folder in CLIP-Benchmark's layout; `texts` are the other members of the images, by extension."""
    members = {}
    for i in range(IMAGES):
        members[f"{i:04d}.jpg"] = picture(i)
        members |= {f"{i:04d}.{extension}": of[i] for extension, of in texts.items()}
    support.write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sharelock_ray.evaluation.clip_benchmark", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def metrics(folder: Path, recipe: Recipe, *arguments: str) -> dict[str, Any]:
    """What the command writes about the data in `folder`, in float32."""
    output = folder / "out.json"
    done = run(
        *("eval", "--dataset", f"wds/{folder.name}", "--dataset_root", str(folder), "--pretrained", best(recipe)),
        *("--output", str(output), "--no_amp", "--batch_size", "16", "--num_workers", "0", *arguments),
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert (written["model"], written["pretrained"]) == ("sharelock", best(recipe))
    return written["metrics"]


def evaluated(recipe: Recipe, benchmark: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our own result of the benchmark on the data in `folder`."""
    content = recipe.model_dump(mode="json")
    content["evaluation"] = {"benchmarks": {benchmark: {"folder": str(folder), "ties": "first_index"}}}
    monkeypatch.setattr(extract, "extract_splits", lambda recipe, splits: support.extract_alone(recipe, splits))
    records = evaluate(parse_recipe(content, "here")).records
    (result,) = [record.result for record in records if record.dataset == Path(benchmark).stem]
    return result


@pytest.mark.slow
def test_classification_equals_sharelock_evaluate(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.random.default_rng(0).integers(0, len(NAMES), IMAGES).tolist()
    labels[: len(NAMES)] = range(len(NAMES))
    folder = write_wds(
        tmp_path / "shapes",
        {"cls": [str(label).encode() for label in labels]},
        classnames="\n".join(NAMES),
        zeroshot_classification_templates="\n".join(TEMPLATES),
    )
    theirs = metrics(folder, recipe)

    benchmark = {
        "title": "Shapes",
        "task": "zero_shot_classification",
        "images": [{"urls": "folder://test/*.tar"}],
        "classes": "folder://classnames.txt",
        "templates": "folder://zeroshot_classification_templates.txt",
        "metrics": {"top_1": None},
    }
    (tmp_path / "shapes.yaml").write_text(yaml.safe_dump(benchmark))
    ours = evaluated(recipe, str(tmp_path / "shapes.yaml"), folder, monkeypatch)
    assert ours.top_1.value == pytest.approx(theirs["acc1"], abs=1e-6)
    assert ours.top_5.value == pytest.approx(theirs["acc5"], abs=1e-6)
    assert ours.mean_per_class == pytest.approx(theirs["mean_per_class_recall"], abs=1e-6)
    assert ours.images == IMAGES
    assert 0 < ours.top_1.value < ours.top_5.value < 1


@pytest.mark.slow
def test_retrieval_equals_sharelock_evaluate(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two captions of each image, one per line, which are different orders of words."""
    words = np.random.default_rng(0)
    captions = [[" ".join(words.permutation(support.WORDS)[:6]) for _ in range(2)] for _ in range(IMAGES)]
    texts = {"txt": ["\n".join(each).encode() for each in captions]}
    folder = write_wds(tmp_path / "captioned", texts, dataset_type="retrieval")
    theirs = metrics(folder, recipe, "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10")

    ours = evaluated(recipe, "flickr30k", folder, monkeypatch)
    assert (ours.images, ours.texts) == (IMAGES, 2 * IMAGES)
    for k in (1, 5, 10):
        assert ours.text_to_image[k].value == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours.image_to_text[k].value == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < ours.text_to_image[10].value < 1


@pytest.mark.slow
def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    done = run("eval", "--dataset", "dummy", "--pretrained", str(tmp_path), "--quiet")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sharelock: ")
    assert str(tmp_path) in done.stderr.splitlines()[-1]


def test_without_clip_benchmark_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(SystemExit) as exited:
        clip_benchmark.main()
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("run `pip install 'sharelock-ray[benchmarks]'`")
