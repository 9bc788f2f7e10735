"""Training and studies with everything in a bucket: the same numbers as on a disk, also after a kill."""

from pathlib import Path

import pytest

import losses
import object_store
import support
from sharelock_ray import storage
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.runs.checkpoint import read_checkpoint
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.trials import Study
from sharelock_ray.workflows.tune import point_recipe

pytestmark = pytest.mark.slow


def test_a_killed_training_goes_on_from_its_checkpoint_in_the_bucket(
    s3_server: str, bucket: str, tmp_path: Path
) -> None:
    # For longer than a worker outlives its driver, three seconds.
    path = support.write_study(tmp_path / "study.yaml", storage.join(bucket, "run"), steps=5000, evaluate_every=200)
    recipe = read_recipe(path)
    run = RunFolder(recipe.output)
    driver = support.start("train", path, **object_store.environment(s3_server))
    support.wait_for(lambda: losses.reached(run, 200), driver)
    support.kill(driver)
    assert run.result() is None
    again = support.start("train", path, **object_store.environment(s3_server))
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "train: continues near step" in said
    alone = support.trained_alone(recipe, tmp_path / "alone")
    assert run.metrics() == alone.metrics()
    ours, theirs = (storage.join(each.last, read_checkpoint(each.last).tensors) for each in (run, alone))
    assert storage.sha256_of(ours) == storage.sha256_of(theirs)
    # Of Ray's own records nothing is left.
    assert "ray" not in storage.names(run.uri)


def test_a_study_in_a_bucket_is_that_of_a_disk(
    s3_server: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = support.write_study(tmp_path / "study.yaml", storage.join(bucket, "run"))
    # The journal of Optuna, a file that grows, lies in `runs/` instead.
    monkeypatch.chdir(tmp_path)
    process = support.start("tune", path, **object_store.environment(s3_server))
    _, said = process.communicate()
    assert process.returncode == 0, said
    recipe = read_recipe(path)
    study = Study.model_validate_json(storage.read_bytes(storage.join(recipe.output, "study.json")))
    assert [trial.state for trial in study.trials] == ["finished"] * 4
    assert Path(study.storage).is_relative_to(tmp_path / "runs")
    assert {"study.html", "study.csv", "study.parquet", "winner.yaml"} <= set(storage.names(recipe.output))
    trial = study.trials[0]
    alone = support.trained_alone(point_recipe(recipe, trial.point), tmp_path / "alone", trial.seed)
    assert RunFolder(trial.run).metrics() == alone.metrics()
