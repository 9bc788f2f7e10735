"""Rejects are shown, exported, and tried again once their cause is gone."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.encoders.images import decode_image
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows import rejects
from sharelock_ray.workflows.audit import audit
from sharelock_ray.workflows.extract import extract


@pytest.fixture
def recipe(tmp_path: Path, models: Path) -> Recipe:
    """Extracted; of each of two shards one image is broken and one caption missing."""
    urls = support.write_pairs(tmp_path / "data", shards=2, samples=6, bad=True)
    # A dataset may have any name, also that of what is done with it.
    data = {"dataset": "retry", "train": {"urls": urls}}
    recipe = read_recipe(str(support.write_recipe(tmp_path / "tiny.yaml", models, data=data)))
    extract(recipe)
    return recipe


@pytest.mark.usefixtures("local_ray")
def test_are_shown_exported_and_recovered(recipe: Recipe, tmp_path: Path) -> None:
    table = rejects.rejects(recipe)
    assert [(r["split"], r["modality"], r["key"], r["error"]) for r in table.to_pylist()] == [
        ("train", "vision", "00000/0000", "UnidentifiedImageError"),
        ("train", "vision", "00001/0000", "UnidentifiedImageError"),
        ("train", "language", "00000/0001", "MissingCaption"),
        ("train", "language", "00001/0001", "MissingCaption"),
    ]
    paths = {ending: str(tmp_path / f"rejects.{ending}") for ending in ("csv", "jsonl", "parquet")}
    assert [rejects.export(recipe, path) for path in paths.values()] == [4, 4, 4]
    assert csv.read_csv(paths["csv"]).to_pylist() == table.to_pylist()
    assert pq.read_table(paths["parquet"]) == table
    lines = Path(paths["jsonl"]).read_text().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    with pytest.raises(RequestError, match=r"must be one of .csv, .jsonl, .parquet"):
        rejects.export(recipe, str(tmp_path / "rejects.txt"))

    # An image of the same name in another folder is not the one that was rejected; nor is one of other tars.
    elsewhere = support.write_pairs(tmp_path / "elsewhere", shards=2, samples=6)
    source = recipe.splits["train"]
    for urls, said in ((elsewhere, "rejects are tried again from where"), (elsewhere.replace("*", "00000"), "is gone")):
        moved = source.model_copy(update={"urls": urls})
        with pytest.raises(RequestError, match=said):
            rejects.retry(recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": moved})}))

    # The images come back, and of one shard the caption.
    support.write_pairs(tmp_path / "data", shards=1, samples=6)
    assert [(each.tried, each.recovered) for each in rejects.retry(recipe)] == [(2, 1), (2, 1)]
    assert rejects.rejects(recipe)["key"].to_pylist() == ["00001/0000", "00001/0001"]
    assert [(a.problems, a.rows, a.rejects, a.matched) for a in audit(recipe)] == [([], 11, 1, 10)] * 2
    support.write_pairs(tmp_path / "data", shards=2, samples=6)
    assert [(each.tried, each.recovered) for each in rejects.retry(recipe)] == [(1, 1), (1, 1)]
    assert rejects.retry(recipe) == []
    assert [path.name for path in (Path(recipe.output) / "features").iterdir()] == ["retry"]

    # What was recovered is what the encoder gives on its own.
    vision, _ = extract(recipe)
    image = next(item.image for item in recipe.splits["train"].read(recipe.splits["train"].shards()[1]))
    alone = VisionEncoder(recipe.vision).encode(decode_image(image, recipe.vision.resolved().preprocessing)[None])
    row = vision.keys.tolist().index("00001/0000")
    np.testing.assert_allclose(vision.embeddings[row].float(), alone[0], rtol=2e-3, atol=1e-4)


def test_of_sets_that_another_run_lends_are_not_tried_again(tmp_path: Path) -> None:
    lent = read_recipe(support.write_study(tmp_path / "lender.yaml", str(tmp_path / "lender")))
    before = {path: path.read_bytes() for path in Path(lent.output).rglob("*") if path.is_file()}
    borrower = lent.model_copy(update={"output": str(tmp_path / "borrower"), "features_of": lent.output})
    with pytest.raises(RequestError, match=r"are those of .*lender \(`features_of`\), which this recipe only reads"):
        rejects.retry(borrower)
    assert {path: path.read_bytes() for path in Path(lent.output).rglob("*") if path.is_file()} == before
