"""`evaluation.model` scores a model that the run did not train, on features of the encoders that the model names."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import official
import support
from sharelock_ray.batches.sampling import split_validation
from sharelock_ray.documents import parse_document
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.features.featureset import join, open_features
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.recipe.load import parse_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train
from sharelock_ray.runs.model import load_model
from sharelock_ray.workflows.evaluate import Evaluation, evaluate
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report

ROWS = 200


@pytest.fixture
def path(tmp_path: Path) -> str:
    """An official checkpoint."""
    return official.write(tmp_path / "x.ckpt", official.Official(official.SETTINGS))


@pytest.fixture
def recipe(path: str, tmp_path: Path) -> Recipe:
    """A recipe with the encoders that the checkpoint names, and random features of its pairs."""
    model = load_model(path)
    content: dict[str, Any] = {
        "name": "official",
        "output": str(tmp_path / "run"),
        "data": {"dataset": "pairs", "train": {"urls": "nowhere/*.tar"}},
        "encoders": [side.encoder.model_dump() for side in (model.checkpoint.vision, model.checkpoint.language)],
        "alignment": {"validation_fraction": 0.5},
        "evaluation": {"model": path},
    }
    recipe = parse_recipe(content, "here")
    generator = np.random.default_rng(0)
    keys = [f"00000/{i:04d}" for i in range(ROWS)]
    for spec, columns in (
        (recipe.vision, {"key": keys, "label": [None] * ROWS}),
        (recipe.language, {"key": keys, "caption_id": [0] * ROWS, "text": keys}),
    ):
        values = generator.normal(size=(ROWS, official.DIMS[spec.modality])).astype(np.float32)
        support.write_parts(Inputs(recipe).uri("train", spec), spec, [[EncodedChunk(columns, values)]])
    return recipe


def changed(recipe: Recipe, **evaluation: object) -> Recipe:
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})


class TestOfficialCheckpoint:
    def test_scores_as_its_definition(self, recipe: Recipe) -> None:
        (record,) = evaluate(recipe).records
        assert (record.task, record.split, record.model_step) == ("retrieval", "validation", 1500)
        sets = [open_features(Inputs(recipe).uri("train", spec)) for spec in (recipe.vision, recipe.language)]
        held = split_validation(join(*sets), recipe.alignment.validation_fraction)[1]
        theirs = official.Official(official.SETTINGS)
        image = theirs.project("vision", sets[0].embeddings[torch.from_numpy(held.vision_rows)])
        text = theirs.project("language", sets[1].embeddings[torch.from_numpy(held.caption_rows)])
        assert record.result == retrieval(image, text, np.arange(len(held)), (1, 5, 10))

    def test_is_scored_once(self, recipe: Recipe, path: str) -> None:
        first = evaluate(recipe)
        made = (Path(recipe.output) / "evaluation.json").stat().st_mtime_ns
        assert evaluate(recipe) == first
        assert (Path(recipe.output) / "evaluation.json").stat().st_mtime_ns == made
        official.write(Path(path), official.Official(official.SETTINGS, seed=1))
        assert evaluate(recipe).records[0].result != first.records[0].result

    def test_has_the_samples_of_the_validation_pairs(self, recipe: Recipe) -> None:
        evaluation = evaluate(recipe)
        path = Path(recipe.output) / "evaluation" / "pairs-validation.parquet"
        rows = pq.read_table(path)
        hits = rows.filter(pc.field("direction") == "image_to_text")["rank"].to_numpy() < 5
        assert hits.mean() == evaluation.records[0].result.image_to_text[5].value
        header = json.loads(rows.schema.metadata[b"evaluation"])
        assert parse_document(Evaluation, json.dumps(header).encode(), "here").request == evaluation.request
        assert header["schema_version"] == Evaluation.schema_version

    def test_of_an_older_version_gets_its_samples(self, recipe: Recipe, said: io.StringIO) -> None:
        first = evaluate(recipe)
        path = Path(recipe.output) / "evaluation" / "pairs-validation.parquet"
        whole = path.read_bytes()
        path.unlink()
        said.truncate(0)
        assert evaluate(recipe) == first
        assert path.read_bytes() == whole
        assert "already done" not in said.getvalue()

    def test_has_a_report_without_a_training(self, recipe: Recipe) -> None:
        evaluate(recipe)
        summary = report(recipe)
        assert summary.training is None
        assert summary.as_json()["training"] is None
        rows = [name for name, _ in summary.rows()]
        assert "training loss" not in rows
        assert "image to text recall@1/5/10" in rows
        page = Path(summary.page).read_text()
        assert "x.ckpt" in page
        assert "<h2>Loss</h2>" not in page

    @pytest.mark.parametrize(
        ("side", "changes", "message"),
        [
            (0, {"interpolation": "bicubic"}, r"vision encoder is .* \(`interpolation` bicubic, not bilinear\)"),
            (
                1,
                {"dtype": "bfloat16", "prompt": "{}"},
                r"language encoder is .*`dtype` bfloat16, not float32; `prompt`",
            ),
        ],
    )
    def test_of_other_encoders_is_refused_before_features_are_missed(
        self, recipe: Recipe, side: int, changes: dict[str, Any], message: str
    ) -> None:
        encoders = list(recipe.encoders)
        encoders[side] = encoders[side].model_copy(update=changes)
        with pytest.raises(RequestError, match=message) as error:
            evaluate(recipe.model_copy(update={"encoders": tuple(encoders)}))
        assert "\n" not in str(error.value)

    def test_that_is_missing_is_one_line(self, recipe: Recipe) -> None:
        with pytest.raises(RequestError, match=r"absent\.ckpt holds no trained model: check `evaluation.model`"):
            evaluate(changed(recipe, model="absent.ckpt"))


def test_another_runs_checkpoint_is_scored_too(recipe: Recipe, tmp_path: Path) -> None:
    other = RunFolder(str(tmp_path / "other"))
    spec = recipe.training.model_copy(update={"global_batch_size": 64, "steps": 3, "warmup_steps": 1})
    spec = spec.model_copy(update={"language": spec.language.model_copy(update={"width": 16})})
    train(other, *(Inputs(recipe).uri("train", encoder) for encoder in (recipe.vision, recipe.language)), spec)
    (record,) = evaluate(changed(recipe, model=other.best)).records
    assert record.model_step <= 3
