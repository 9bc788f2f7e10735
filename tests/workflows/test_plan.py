"""A plan from a probe is near what the extraction then takes, and is kept with it."""

import io
from pathlib import Path

import pytest
import torch

import support
from sharelock_ray import storage
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.errors import RequestError
from sharelock_ray.extraction.chunks import Chunk
from sharelock_ray.extraction.group import EncoderGroup
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import DataSpec, Operations, Recipe
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.plan import Plan, _wall_seconds, plan, predictions


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    urls = support.write_pairs(tmp_path / "data", shards=5, samples=40, bad=True)
    data = {"dataset": "mine", "train": {"urls": urls}}
    return read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))


def with_options(recipe: Recipe, **options: object) -> Recipe:
    return recipe.model_copy(update={"operations": Operations(extraction=ExtractionOptions(**options))})


@pytest.mark.usefixtures("local_ray")
def test_foresees_samples_rows_and_bytes_and_is_quoted_by_the_manifest(recipe: Recipe) -> None:
    foreseen = plan(recipe, samples=60)
    split = foreseen.splits[0]
    assert split.samples == pytest.approx(200, rel=0.05)
    assert split.probed == 60
    assert [e.rows for e in split.encoders] == [pytest.approx(190, rel=0.1)] * 2
    assert (split.gpu_hours, split.cost) == (0, None)
    assert split.hours > 0
    vision, language = extract(recipe)
    for planned, made in zip(split.encoders, (vision, language), strict=True):
        assert made.manifest.planned is not None
        assert made.manifest.planned.rows == planned.rows
        assert made.manifest.planned.gpu_hours == made.manifest.gpu_hours == 0
        assert made.manifest.planned.wall_seconds > split.hours * 3600
        # Of the columns; a file of this size has nearly as much about them.
        columns = sum(made.part(part.index).nbytes for part in made.manifest.parts)
        assert planned.bytes == pytest.approx(columns, rel=0.3)


def test_cost_and_time_follow_from_actors_and_price(recipe: Recipe) -> None:
    one = plan(with_options(recipe, max_actors=1), samples=20, price=36.0).splits[0]
    assert one.cost == pytest.approx(36.0 * one.hours)
    each = sum(e.seconds_per_sample for e in one.encoders) + one.read_seconds_per_sample
    assert one.hours == pytest.approx(each * one.samples / 3600)
    two = plan(with_options(recipe, max_actors=2), samples=20, price=36.0).splits[0]
    assert two.cost == pytest.approx(36.0 * two.hours * 2)


def test_actors_that_read_for_themselves_are_as_many_as_shards_at_most(recipe: Recipe) -> None:
    five, more = (plan(with_options(recipe, max_actors=n), samples=20, price=1.0).splits[0] for n in (5, 8))
    assert five.cores_to_read == more.cores_to_read == 0
    assert [each.cost for each in (five, more)] == [pytest.approx(each.hours * 5) for each in (five, more)]


def test_the_probe_takes_what_is_asked_from_as_many_shards_as_it_needs(recipe: Recipe, tmp_path: Path) -> None:
    urls = support.write_pairs(tmp_path / "small", shards=30, samples=2)
    small = recipe.model_copy(update={"data": DataSpec(dataset="small", train={"urls": urls})})
    assert [plan(small, samples=n).splits[0].probed for n in (5, 20, 1000)] == [5, 20, 60]


def test_the_probe_has_the_threads_of_an_actor(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usual, encode, seen = torch.get_num_threads(), EncoderGroup.encode, set()

    def watched(self: EncoderGroup, chunk: Chunk) -> list[EncodedChunk]:
        seen.add(torch.get_num_threads())
        return encode(self, chunk)

    monkeypatch.setattr(EncoderGroup, "encode", watched)
    for cpus, threads in [(0.5, 1), (3, 3)]:
        seen.clear()
        plan(with_options(recipe, num_cpus=cpus), samples=5)
        assert (seen, torch.get_num_threads()) == ({threads}, usual)


class TestWallSeconds:
    """100 seconds of reading on a core, and 100 of encoding on a whole device, of 50 shards."""

    def of(self, free: float | None, **options: float) -> tuple[float, float]:
        return _wall_seconds(ExtractionOptions(**options), 50, 100.0, 100.0, free)

    def test_an_actor_that_reads_for_itself_does_one_after_the_other(self) -> None:
        assert self.of(None, max_actors=4) == (50, 0)

    def test_gpus_count_and_not_actors(self) -> None:
        assert self.of(None, num_gpus=1, max_actors=2) == (50, 2)
        assert self.of(None, num_gpus=0.5, max_actors=2) == (100, 1)
        assert self.of(None, num_gpus=2, max_actors=2) == (50, 2)

    def test_too_few_cores_to_read_are_waited_for(self) -> None:
        assert self.of(8, num_gpus=1, max_actors=4) == (25, 4)
        assert self.of(2, num_gpus=1, max_actors=4) == (50, 4)
        assert self.of(1, num_gpus=1, max_actors=4) == (100, 4)

    def test_no_more_shards_are_read_at_once_than_there_are(self) -> None:
        assert self.of(80, num_gpus=1, max_actors=100) == (2, 100)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number_from_0(price: float, recipe: Recipe) -> None:
    with pytest.raises(RequestError, match=rf"^the price is {price}: give a number"):
        plan(recipe, samples=5, price=price)


def test_the_total_is_of_all_splits_and_encoders(recipe: Recipe) -> None:
    both = recipe.data.model_copy(update={"test": recipe.data.train})
    found = plan(recipe.model_copy(update={"data": both}), samples=10, price=3.0)
    assert len(found.splits) == 2
    assert found.total.hours == pytest.approx(sum(split.hours for split in found.splits))
    assert found.total.cost == pytest.approx(3 * found.total.hours)
    assert found.total.bytes == sum(encoder.bytes for split in found.splits for encoder in split.encoders)


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
        plan(with_options(recipe, num_gpus=1))


def test_data_that_cannot_be_read_cannot_be_planned(recipe: Recipe, tmp_path: Path) -> None:
    for path in (tmp_path / "data").glob("*.tar"):
        path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(RequestError, match="have no readable sample"):
        plan(recipe)


def test_is_kept_as_it_was_made(recipe: Recipe) -> None:
    made = plan(recipe, samples=20, price=2.5)
    kept = Plan.model_validate_json((Path(recipe.output) / "plan.json").read_bytes())
    assert kept == made
