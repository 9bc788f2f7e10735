"""Stored documents open for ever, those of newer versions are refused by their number, and damaged ones in one line.

`documents/v1` is what revision b9cce62 stored, in folders that were below `/example`: a finished run of a tiny recipe
(`run`), a training that was killed at step 15 of 20 (`half`) and the same one undisturbed (`whole`), an extraction of
which one of two parts is sealed (`staged`), and a study of four trials (`study`); and what the revision that first
stored them said of concepts (`concepts`). Never change these files.

`documents/fields.json` pins what each document says by now. Whoever changes that raises the document's
`schema_version`, gives new fields a default, and writes the file anew: `python tests/test_documents.py`.
"""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from sharelock_ray import storage
from sharelock_ray.concepts.audit import ConceptAudit
from sharelock_ray.concepts.compared import SimilarityThreshold
from sharelock_ray.concepts.split import ConceptSplit, read_split
from sharelock_ray.demo.picture_tars import PicturesRecord
from sharelock_ray.documents import Document, NewerVersionError, parse_document, read_document
from sharelock_ray.engine import cluster
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import join, open_features
from sharelock_ray.features.manifest import Manifest, Origin, read_manifest
from sharelock_ray.features.state import Live, read_live, state_of
from sharelock_ray.features.writer import Begun, ChunkRecord, FeatureSetWriter, PartRecord
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.runs.checkpoint import Checkpoint, read_checkpoint
from sharelock_ray.runs.folder import Fault, RunFolder, TrainingRequest, TrainingResult
from sharelock_ray.runs.loop import train
from sharelock_ray.runs.model import load_model
from sharelock_ray.sources.sample import Shard
from sharelock_ray.study.affinity_study import Affinity
from sharelock_ray.study.language_scores import LanguageScore
from sharelock_ray.study.matched import Matched
from sharelock_ray.study.trials import Study, Trial, read_trial
from sharelock_ray.workflows import tune
from sharelock_ray.workflows.audit import AuditRecord
from sharelock_ray.workflows.concepts import report as report_concepts
from sharelock_ray.workflows.evaluate import Evaluation
from sharelock_ray.workflows.plan import Plan
from sharelock_ray.workflows.report import report_study
from sharelock_ray.workflows.timing import StageSeconds

V1 = Path(__file__).parent / "documents" / "v1"
FIELDS = V1.parent / "fields.json"
VISION, LANGUAGE = (
    f"run/features/shapes/train/{name}" for name in ("vision/tiny-resnet-fc4b4fe3", "language/tiny-decoder-8b06b397")
)
TRIAL = "study/trials/c111c9fe"
SHARDS = [Shard(i, f"{i:05d}", f"/example/data/{i:05d}.tar", 100 + i) for i in range(2)]


@dataclass(frozen=True)
class Stored:
    """A document, where there is one of version 1, and how a command reads the one in a folder."""

    kind: type[Document]
    path: str
    read: Callable[[str], Any]


def finish(folder: str) -> None:
    Path(folder, "staging").mkdir()
    shutil.move(f"{folder}/00000.json", f"{folder}/staging/00000.json")
    writer_of(folder).finish(SHARDS[:1], Origin.model_construct(), gpus=0, wall_seconds=0)


def start(folder: str) -> None:
    Path(folder, "staging").mkdir()
    shutil.move(f"{folder}/begun.json", f"{folder}/staging/begun.json")
    writer_of(folder).start(SHARDS, chunk_size=2)


STORED = [
    Stored(Manifest, f"{VISION}/manifest.json", open_features),
    Stored(Manifest, f"{LANGUAGE}/manifest.json", read_manifest),
    Stored(Begun, "staged/staging/begun.json", start),
    Stored(PartRecord, "staged/staging/00000.json", finish),
    Stored(TrainingRequest, "half/training-request.json", lambda f: RunFolder(f).begin(*begun())),
    Stored(TrainingResult, "run/training.json", lambda folder: RunFolder(folder).result()),
    Stored(Checkpoint, "run/best/checkpoint.json", load_model),
    Stored(Trial, f"{TRIAL}/trial.json", read_trial),
    Stored(Study, "study/study.json", report_study),
    Stored(ConceptSplit, "concepts/split.json", lambda folder: read_split(f"{folder}/split.json")),
    Stored(ConceptAudit, "concepts/audit.json", lambda folder: report_concepts(f"{folder}/audit.json")),
]
# Other commands read them as a part of more than these tests have.
OTHERS = [
    Stored(kind, path, lambda folder, kind=kind, path=path: read_document(kind, f"{folder}/{Path(path).name}"))
    for kind, path in (
        (Evaluation, "run/evaluation.json"),
        (AuditRecord, "run/audit.json"),
        (StageSeconds, "run/seconds.json"),
        (Plan, "run/plan.json"),
        (Live, "staged/staging/progress.json"),
    )
]
each_document = pytest.mark.parametrize("stored", STORED + OTHERS, ids=lambda stored: stored.path)


def writer_of(folder: str) -> FeatureSetWriter:
    return FeatureSetWriter(folder, "language", "float16")


def begun() -> tuple[Any, Manifest, Manifest]:
    """The recipe's settings and feature sets of `half` and `whole`."""
    return read_recipe(str(V1 / "study" / "study.yaml")).alignment, *map(read_manifest, signals())


def signals() -> tuple[str, str]:
    sets = V1 / "study" / "features" / "pairs" / "train"
    return str(sets / "vision" / "signal-ee0fed2e"), str(sets / "language" / "signal-21c445c5")


def copied(name: str, folder: Path) -> Path:
    """What version 1 left in a folder, as if it had been made in `folder`."""
    place = Path(shutil.copytree(V1 / name, folder / name))
    for path in place.rglob("*"):
        if path.suffix in (".json", ".journal", ".yaml"):
            path.write_bytes(path.read_bytes().replace(b"/example", str(folder).encode()))
    return place


def is_said(stored: Any, now: Any) -> bool:
    """Whether all that `stored` says is in `now`."""
    if isinstance(stored, dict):
        return isinstance(now, dict) and all(name in now and is_said(of, now[name]) for name, of in stored.items())
    if isinstance(stored, list):
        return len(stored) == len(now) and all(map(is_said, stored, now))
    return bool(stored == now)


class TestOfVersion1:
    @each_document
    def test_opens_and_is_stored_with_all_that_it_said(self, stored: Stored) -> None:
        found = read_document(stored.kind, str(V1 / stored.path))
        said = json.loads((V1 / stored.path).read_text()) | {"schema_version": stored.kind.schema_version}
        # `tests/evaluation/test_result.py` says where the one result of an evaluation went.
        if stored.kind is Evaluation:
            del said["result"]
        assert is_said(said, found.content())
        again = parse_document(stored.kind, json.dumps(found.content()).encode(), "here")
        assert again == found

    def test_feature_sets_join(self) -> None:
        pairs = join(open_features(str(V1 / VISION)), open_features(str(V1 / LANGUAGE)))
        assert len(pairs) == 22
        assert pairs.lost == {"vision": 1, "language": 1}
        vision, language = pairs.vision, pairs.language
        assert (tuple(vision.embeddings.shape), tuple(language.embeddings.shape)) == ((23, 96), (23, 32))

    def test_a_checkpoint_gives_the_same_projections(self) -> None:
        model = load_model(str(V1 / "run" / "best"))
        known = json.loads((V1 / "run" / "projections.json").read_text())
        for modality, name in (("vision", "tiny-resnet-fc4b4fe3"), ("language", "tiny-decoder-8b06b397")):
            features = open_features(str(V1 / "run" / "features" / "shapes" / "test" / modality / name))
            found = model.project(features)[:3]
            torch.testing.assert_close(found, torch.tensor(known[modality]), atol=1e-5, rtol=0)

    def test_a_half_done_training_ends_as_if_undisturbed(self, tmp_path: Path) -> None:
        run, whole = RunFolder(str(copied("half", tmp_path))), RunFolder(str(V1 / "whole"))
        assert read_checkpoint(run.last).position.step == 10
        train(run, *signals(), begun()[0])
        resumed, undisturbed = run.result(), whole.result()
        assert resumed is not None
        assert undisturbed is not None
        assert (resumed.steps, resumed.best_step) == (undisturbed.steps, undisturbed.best_step)
        assert resumed.last_loss == pytest.approx(undisturbed.last_loss, abs=1e-4)
        assert [row["step"] for row in run.metrics()] == [row["step"] for row in whole.metrics()]

    def test_a_half_done_extraction_is_finished(self, tmp_path: Path) -> None:
        uri = str(copied("staged", tmp_path))
        state = state_of(uri)
        assert (state.parts, state.sealed, state.live.samples) == (2, 1, 3)
        writer = writer_of(uri)
        assert writer.start(SHARDS, chunk_size=9).chunk_size == 2
        writer.seal(1)
        origin = Origin(dataset="d", split="train", encoder={"name": "e"}, weights_sha256=None, software={})
        manifest = writer.finish(SHARDS, origin, gpus=0, wall_seconds=1)
        assert (manifest.rows, manifest.rejects, manifest.tokens, manifest.revisions) == (5, 1, 21, ("abc",))
        assert open_features(uri).keys.tolist() == [
            "00000/0000",
            "00000/0001",
            "00000/0003",
            "00001/0000",
            "00001/0001",
        ]

    def test_a_studys_trials_are_taken_over(
        self, tmp_path: Path, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copied("study", tmp_path)
        known = read_document(Study, str(folder / "study.json"))
        monkeypatch.setattr(cluster, "connected", lambda: pytest.fail("a trial is to be run"))
        found = tune.run_study(read_recipe(str(folder / "study.yaml")))
        assert found == known
        assert "4 of 4 trials are already done" in said.getvalue()


class TestOfANewerVersion:
    @each_document
    def test_is_refused_by_its_number(self, stored: Stored, tmp_path: Path) -> None:
        path = tmp_path / Path(stored.path).name
        content = {"schema_version": 99, "something": "new"}
        path.write_text(json.dumps(content))
        with pytest.raises(NewerVersionError) as error:
            stored.read(str(tmp_path))
        read_up_to = stored.kind.schema_version
        place, says = str(error.value).split(" ", 1)
        assert place.endswith(path.name)
        assert (
            says
            == f"was made by a newer version of sharelock_ray (schema 99, this one reads up to {read_up_to}): upgrade"
        )
        # What is not damaged is not removed.
        assert [json.loads(each.read_text()) for each in tmp_path.rglob(path.name)] == [content]

    def test_a_chunk_is_left_alone(self, tmp_path: Path) -> None:
        uri = str(copied("staged", tmp_path))
        chunk = tmp_path / "staged" / "staging" / "00001" / "00000-last.arrow"
        rows = pa.ipc.open_file(pa.BufferReader(chunk.read_bytes())).read_all()
        rows = rows.replace_schema_metadata({"chunk": json.dumps({"schema_version": 99})})
        with pa.ipc.new_file(str(chunk), rows.schema) as stream:
            stream.write_table(rows)
        with pytest.raises(NewerVersionError, match=r"00000-last\.arrow was made by a newer version"):
            writer_of(uri).seal(1)
        assert chunk.exists()

    def test_a_note_of_progress_is_left_out(self, tmp_path: Path) -> None:
        uri = str(copied("staged", tmp_path))
        assert read_live(uri) is not None
        storage.write_json(f"{uri}/staging/progress.json", {"schema_version": 99})
        assert read_live(uri) is None


class TestDamaged:
    @each_document
    @pytest.mark.parametrize("damage", ["empty", "cut short", "a list", "a field more", "a wrong version"])
    def test_is_one_line_that_names_it(self, stored: Stored, damage: str, tmp_path: Path) -> None:
        whole = (V1 / stored.path).read_bytes()
        content = {
            "empty": b"",
            "cut short": whole[: len(whole) // 2],
            "a list": b"[]",
            "a field more": json.dumps(json.loads(whole) | {"something": "else"}).encode(),
            "a wrong version": json.dumps(json.loads(whole) | {"schema_version": "one"}).encode(),
        }[damage]
        path = tmp_path / Path(stored.path).name
        path.write_bytes(content)
        with pytest.raises(RunError) as error:
            stored.read(str(tmp_path))
        message = str(error.value)
        assert f"{path.name} is damaged (" in message
        assert "\n" not in message
        assert not isinstance(error.value, RequestError)


def fields_of(kind: type[Document]) -> dict[str, Any]:
    """The version of a document, and the names of all fields in it, by model."""
    schema = kind.model_json_schema()
    models = {kind.__name__: schema} | schema.get("$defs", {})
    fields = {name: sorted(of.get("properties", [])) for name, of in sorted(models.items())}
    return {"schema_version": kind.schema_version, "fields": fields}


def all_fields() -> dict[str, Any]:
    return {
        kind.__name__: fields_of(kind)
        for kind in (
            Affinity,
            ChunkRecord,
            Fault,
            LanguageScore,
            Matched,
            PicturesRecord,
            SimilarityThreshold,
            *(each.kind for each in STORED + OTHERS),
        )
    }


def test_a_changed_document_has_another_version() -> None:
    assert all_fields() == json.loads(FIELDS.read_text()), f"see {__file__}"


if __name__ == "__main__":
    FIELDS.write_text(json.dumps(all_fields(), indent=1, sort_keys=True) + "\n")
