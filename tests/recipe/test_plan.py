"""A plan from a probe is near what the extraction then takes, and is kept with it."""

import io
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.options import ExtractionOptions
from sharelock_ray.recipe import stages
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.plan import Plan, predictions
from sharelock_ray.recipe.schema import Operations, Recipe


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    urls = support.write_pairs(tmp_path / "data", shards=5, samples=40, bad=True)
    data = {"dataset": "mine", "train": {"urls": urls}}
    return read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))


def with_options(recipe: Recipe, **options: object) -> Recipe:
    return recipe.model_copy(update={"operations": Operations(extraction=ExtractionOptions(**options))})


@pytest.mark.usefixtures("local_ray")
def test_foresees_samples_rows_and_bytes_and_is_quoted_by_the_manifest(recipe: Recipe) -> None:
    foreseen = stages.plan(recipe, samples=60)
    split = foreseen.splits[0]
    assert split.samples == pytest.approx(200, rel=0.05)
    assert [e.rows for e in split.encoders] == [pytest.approx(190, rel=0.1)] * 2
    assert (split.gpu_hours, split.cost) == (0, None)
    assert split.hours > 0
    vision, language = stages.extract(recipe)
    for planned, made in zip(split.encoders, (vision, language), strict=True):
        assert made.manifest.planned is not None
        assert made.manifest.planned.rows == planned.rows
        # Of the columns; a file of this size has nearly as much about them.
        columns = sum(made.part(part.index).nbytes for part in made.manifest.parts)
        assert planned.bytes == pytest.approx(columns, rel=0.3)


def test_cost_and_time_follow_from_actors_and_price(recipe: Recipe) -> None:
    one = stages.plan(with_options(recipe, max_actors=1), samples=20, price=36.0).splits[0]
    assert one.cost == pytest.approx(36.0 * one.hours)
    each = sum(e.seconds_per_sample for e in one.encoders) + one.read_seconds_per_sample
    assert one.hours == pytest.approx(each * one.samples / 3600)
    two = stages.plan(with_options(recipe, max_actors=2), samples=20, price=36.0).splits[0]
    assert two.cost == pytest.approx(36.0 * two.hours * 2)


def test_without_a_plan_nothing_is_foreseen(recipe: Recipe) -> None:
    assert predictions(recipe, "train") == {}


@pytest.mark.parametrize("content", ['{"device": "cpu", "probes": 3}', "half"])
def test_a_plan_that_cannot_be_read_is_ignored_and_said(content: str, recipe: Recipe, said: io.StringIO) -> None:
    path = Path(recipe.output) / "plan.json"
    storage.write_bytes(str(path), content.encode())
    assert predictions(recipe, "train") == {}
    assert said.getvalue().startswith(f"{path} cannot be read")


def test_a_plan_for_gpus_wants_one(recipe: Recipe) -> None:
    with pytest.raises(RequestError, match="this machine has none"):
        stages.plan(with_options(recipe, num_gpus=1))


def test_data_that_cannot_be_read_cannot_be_planned(recipe: Recipe, tmp_path: Path) -> None:
    for path in (tmp_path / "data").glob("*.tar"):
        path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(RequestError, match="hold no sample that can be read"):
        stages.plan(recipe)


def test_is_kept_as_it_was_made(recipe: Recipe) -> None:
    made = stages.plan(recipe, samples=20, price=2.5)
    kept = Plan.model_validate_json((Path(recipe.output) / "plan.json").read_bytes())
    assert kept == made
