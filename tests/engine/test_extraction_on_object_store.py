"""Extraction from and to an object store: the same bytes as on a local disk."""

import json
from pathlib import Path
from typing import Any

import pytest

import object_store
import support
from object_store import ChaosProxy
from sharelock_ray import cli, storage
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.engine.extraction import ExtractionJob, extract
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.errors import RequestError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.soundness import audit
from sharelock_ray.sources.webdataset import WebDatasetSource

SHARDS, CHUNK = 3, 4
FAULTS = {"slow_down": 0.1, "error": 0.04, "refused": 0.05, "broken": 0.05, "lost": 0.08, "cut": 0.08, "drip": 0.05}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    support.write_pairs(folder, shards=SHARDS, samples=10, bad=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    tars: Path,
    tmp_path_factory: pytest.TempPathFactory,
    vision_spec: VisionSpec,
    language_spec: LanguageSpec,
    local_ray: None,
) -> list[FeatureSet]:
    """The sets of a run on a local disk."""
    source = WebDatasetSource(urls=f"{tars}/*.tar")
    root = str(tmp_path_factory.mktemp("features"))
    job = ExtractionJob(root, "pairs", "train", source, (resolve(vision_spec), resolve(language_spec)))
    return extract(job, ExtractionOptions(chunk_size=CHUNK))


def run(endpoint: str, bucket: str, tars: Path, models: Path, tmp_path: Path) -> list[FeatureSet]:
    """Runs the command on the bucket, with its own Ray, whose workers inherit the environment."""
    for tar in tars.iterdir():
        storage.write_bytes(storage.join(bucket, "data", tar.name), tar.read_bytes())
    recipe = support.write_recipe(
        tmp_path / "recipe.yaml",
        models,
        output=storage.join(bucket, "run"),
        data={"dataset": "pairs", "train": {"urls": storage.join(bucket, "data", "*.tar")}},
        operations={"extraction": {"chunk_size": CHUNK}},
    )
    process = support.start("extract", str(recipe), "--json", **object_store.environment(endpoint))
    out, err = process.communicate()
    assert process.returncode == 0, err
    return [open_features(found["uri"]) for found in json.loads(out.splitlines()[-1])["features"]]


def check(found: list[FeatureSet], expected: list[FeatureSet], bucket: str, s3: Any) -> None:
    """Asserts that nothing is lost, duplicated or left behind."""
    keys = [f"{shard:05d}/{sample:04d}" for shard in range(SHARDS) for sample in range(10)]
    for ours, theirs in zip(found, expected, strict=True):
        assert audit(ours, keys).problems == []
        assert list(ours.keys) == list(theirs.keys)
        assert [part.sha256 for part in ours.manifest.parts] == [part.sha256 for part in theirs.manifest.parts]
        rejects, others = ours.rejects.to_pylist(), theirs.rejects.to_pylist()
        assert [(r["key"], r["stage"], r["error"]) for r in rejects] == [
            (r["key"], r["stage"], r["error"]) for r in others
        ]
        assert storage.names(ours.uri) == storage.names(theirs.uri)
    name = bucket.removeprefix("s3://")
    assert not s3.list_multipart_uploads(Bucket=name).get("Uploads")


def test_faults_change_nothing(
    undisturbed: list[FeatureSet], bucket: str, chaos: ChaosProxy, tars: Path, models: Path, tmp_path: Path, s3: Any
) -> None:
    chaos.choose = object_store.seeded(1, FAULTS)
    found = run(chaos.endpoint, bucket, tars, models, tmp_path)
    assert {fault for _, _, fault in chaos.spoilt} == set(FAULTS)
    assert len(chaos.spoilt) > 100
    chaos.choose = lambda method, path, attempt: None
    check(found, undisturbed, bucket, s3)


def test_credentials_that_expire_in_the_middle_end_the_command_with_one_line(
    bucket: str, chaos: ChaosProxy, models: Path, tmp_path: Path
) -> None:
    for i in range(6):
        storage.write_bytes(f"{bucket}/data/{i}.jpg", support.jpeg())
    rows = "".join(f"{i}.jpg,a text\n" for i in range(6))
    storage.write_bytes(f"{bucket}/data/x.csv", f"image,text\n{rows}".encode())
    recipe = support.write_recipe(
        tmp_path / "recipe.yaml",
        models,
        output=storage.join(bucket, "run"),
        data={"dataset": "listed", "train": {"format": "table", "path": f"{bucket}/data/x.csv", "rows_per_shard": 2}},
    )
    chaos.choose = lambda method, path, attempt: "expired" if path.endswith("/3.jpg") else None
    process = support.start("extract", str(recipe), **object_store.environment(chaos.endpoint))
    _, err = process.communicate()
    assert process.returncode == RequestError.exit_code
    *_, last = err.splitlines()
    assert last.startswith(f"sharelock: {bucket}/data/3.jpg: ")
    assert "token has expired" in last


@pytest.mark.usefixtures("local_ray", "s3_environment")
def test_a_wrong_bucket_ends_the_command_with_one_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"dataset": "pairs", "train": {"urls": "s3://nobody-has-this-bucket/*.tar"}}
    recipe = support.write_recipe(tmp_path / "recipe.yaml", models, data=data)
    with pytest.raises(SystemExit) as ended:
        cli.main(["extract", str(recipe)])
    assert ended.value.code == RequestError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("sharelock: s3://nobody-has-this-bucket/: no such bucket at ")
    assert said.count("\n") == 1
