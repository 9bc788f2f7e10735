"""The state of a run, from storage alone."""

import os
import time
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.features.state import Live, write_live
from sharelock_ray.features.writer import FeatureSetWriter
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.status import status


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    data = {"dataset": "mine", "train": {"urls": support.write_pairs(tmp_path / "data")}}
    return read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))


def begun(recipe: Recipe) -> str:
    uri = Inputs(recipe).uri("train", recipe.vision)
    FeatureSetWriter(uri, "vision", "float16").start(recipe.splits["train"].shards(), chunk_size=4)
    return uri


def test_a_run_that_is_not_begun_waits(recipe: Recipe) -> None:
    assert [(each.stage, each.state) for each in status(recipe)] == [
        ("extract train vision tiny-resnet", "waiting"),
        ("extract train language tiny-decoder", "waiting"),
        ("train", "waiting"),
        ("evaluate", "waiting"),
    ]


def test_a_driver_that_tells_is_running_and_one_that_is_silent_has_stopped(recipe: Recipe) -> None:
    uri = begun(recipe)
    assert status(recipe)[0].state == "stopped"
    write_live(uri, Live(updated=time.time()))
    assert (status(recipe)[0].state, status(recipe)[0].detail) == (
        "running",
        "0 of 2 parts sealed; workers are starting and loading models",
    )
    live = Live(
        samples=1200,
        rejects=3,
        samples_per_second=40,
        tokens_per_second=900,
        seconds={"read": 10, "encode": 28, "write": 2},
        encoders_idle=0.3,
        share=0.5,
        seconds_left=30,
        updated=time.time(),
    )
    write_live(uri, live)
    assert status(recipe)[0].state == "running"
    assert status(recipe)[0].detail == (
        "0 of 2 parts sealed; 1,200 samples (50%), 40.0/s, 0:30 left, 3 rejects; "
        "900 tokens/s; read 25%, encode 70%, write 5%; encoders idle 30%"
    )
    write_live(uri, live.model_copy(update={"updated": time.time() - 125}))
    assert status(recipe)[0].state == "stopped"
    assert "last update 2:05 ago: run extract again to continue" in status(recipe)[0].detail


def test_what_a_driver_of_another_version_told_is_left_out(recipe: Recipe) -> None:
    storage.write_json(storage.join(begun(recipe), "staging", "progress.json"), {"speed": 3})
    assert (status(recipe)[0].state, status(recipe)[0].detail) == ("stopped", "0 of 2 parts sealed")


def test_a_training_that_opens_its_features_is_told_from_one_that_nobody_began(recipe: Recipe) -> None:
    assert (status(recipe)[2].state, status(recipe)[2].detail) == ("waiting", "")
    request = Path(recipe.output) / "training-request.json"
    storage.write_json(str(request), {})
    os.utime(request, (time.time() - 75, time.time() - 75))
    assert (status(recipe)[2].state, status(recipe)[2].detail) == ("waiting", "started 1:15 ago, no step yet")


def test_a_training_tells_its_step_and_loss(recipe: Recipe) -> None:
    recipe.run.write_metrics([{"step": 1, "loss": 4.0}, {"step": 10, "loss": 3.25}])
    assert (status(recipe)[2].state, status(recipe)[2].detail) == ("running", "step 10 of 20, loss 3.250")
    validation = {"step": 10, "validation_loss": 3.5, "recall_at_1": 0.25}
    recipe.run.write_metrics([*recipe.run.metrics(), validation])
    assert status(recipe)[2].detail == "step 10 of 20, loss 3.250, validation loss 3.500, recall@1 0.250"
    checkpoint = storage.join(recipe.run.last, "checkpoint.json")
    storage.write_json(checkpoint, {"position": {"step": 10, "seconds": 4.0}})
    recipe.run.write_metrics([{"step": 1, "loss": 4.0, "pairs": 64}, *recipe.run.metrics()[1:]])
    assert status(recipe)[2].detail.endswith("recall@1 0.250; 2.5 steps/s, 160 pairs/s, 0:04 left")
    path = Path(recipe.output) / "metrics.jsonl"
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert status(recipe)[2].state == "stopped"
