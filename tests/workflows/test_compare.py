"""`sharelock compare`: what is a run, how it is named, and what is said of one that cannot be compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sharelock_ray import cli, storage
from sharelock_ray.documents import NewerVersionError
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.result import BenchmarkRequest, FeatureSetUse, RetrievalRecord, ZeroShotRecord
from sharelock_ray.evaluation.samples import of_records, retrieved, samples_uri, write_samples
from sharelock_ray.evaluation.tasks.retrieval import recalls
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.recipe.schema import EvaluationSpec
from sharelock_ray.report.comparison import Model
from sharelock_ray.workflows.compare import compare
from sharelock_ray.workflows.evaluate import Evaluation, EvaluationRequest

V1 = Path(__file__).parents[1] / "documents" / "v1" / "run"


def evaluation(**changes: Any) -> Evaluation:
    eye = torch.eye(3)
    result = zero_shot(eye, np.arange(3), eye, ["a", "b", "c"])[0]
    record = ZeroShotRecord(dataset="shapes", split="test", model_step=1, templates=("{}",), result=result)
    request = EvaluationRequest(model="m", features=("f",), evaluation=EvaluationSpec())
    return Evaluation(**({"request": request, "records": (record,)} | changes))


def run(folder: Path, **changes: Any) -> str:
    """A folder with an evaluation."""
    storage.write_json(str(folder / "evaluation.json"), evaluation(**changes).content())
    return str(folder)


class TestRuns:
    def test_folders_and_documents_are_compared(self, tmp_path: Path) -> None:
        found = compare([run(tmp_path / "a"), f"{run(tmp_path / 'b')}/evaluation.json"])
        assert [model.name for model in found.runs] == ["a", "b"]
        top_1 = next(iter(found.groups.values()))
        assert [score.source for score in top_1] == [str(tmp_path / name / "evaluation.json") for name in "ab"]

    def test_runs_are_named_by_the_shortest_ends_of_their_paths(self, tmp_path: Path) -> None:
        places = [run(tmp_path / place) for place in ("x/demo", "y/demo", "y/other")]
        assert [model.name for model in compare(places).runs] == ["x/demo", "y/demo", "y/other"]
        assert [model.name for model in compare(places[1:]).runs] == ["demo", "other"]

    def test_a_document_of_another_name_is_a_run(self, tmp_path: Path) -> None:
        document = tmp_path / "old.json"
        Path(run(tmp_path), "evaluation.json").rename(document)
        assert [model.name for model in compare([str(document)]).runs] == ["old.json"]

    def test_a_run_of_version_1_is_compared_with_what_is_known_of_its_model(self) -> None:
        found = compare([str(V1)])
        assert found.runs == (Model("run", False, "tiny-resnet", "tiny-decoder", "20 pairs"),)
        assert {score.measure.metric for score in found.scores} >= {"top-1", "text to image recall@1"}

    def test_nothing_is_said_of_a_model_that_was_not_scored(self, tmp_path: Path) -> None:
        best = tmp_path / "a" / "best" / "checkpoint.json"
        best.parent.mkdir(parents=True)
        best.write_bytes((V1 / "best" / "checkpoint.json").read_bytes())
        assert compare([run(tmp_path / "a")]).runs == (Model("a"),)

    def test_notes_of_runs_are_named(self, tmp_path: Path) -> None:
        found = compare([run(tmp_path / "a", notes=("retrieval is left out",)), run(tmp_path / "b", records=())])
        assert {"a: retrieval is left out", "b: the evaluation holds no scores"} <= set(found.notes)

    def test_in_an_object_store(self, bucket: str) -> None:
        storage.write_json(f"{bucket}/runs/a/evaluation.json", evaluation().content())
        found = compare([f"{bucket}/runs/a"], f"{bucket}/out")
        assert [model.name for model in found.runs] == ["a"]
        tables = [f"{name}.{ending}" for name in ("compare", "compare-paired") for ending in ("csv", "parquet")]
        assert storage.names(f"{bucket}/out") == sorted(["compare.html", *tables])


def with_samples(folder: Path, right: int, benchmark: bool = False, **changes: Any) -> str:
    """A run whose model finds the captions of the first `right` of ten images, with its samples."""
    model = f"model {right}"
    asked = BenchmarkRequest(
        name="shapes",
        language="en",
        ties="strict",
        recall_at=(1,),
        model=model,
        images=FeatureSetUse(path="a/b", digest="1"),
        texts=FeatureSetUse(path="a/c", digest="2"),
        preprocessing={},
    )
    image, owner = torch.eye(10), np.arange(10)
    found = ranks(image, image[[*range(right), *np.roll(owner[right:], 1)]], owner)
    record = RetrievalRecord(
        dataset="shapes",
        split="test",
        model_step=1,
        benchmark=asked if benchmark else None,
        result=recalls(*found, owner, (1,), "strict"),
    )
    captions = pa.table({"caption_id": pa.array([0] * 10, pa.int32()), "text": [f"caption {i}" for i in owner]})
    table = retrieved(pa.array([f"{i:04d}" for i in owner]), owner, captions, *found)
    request = EvaluationRequest(model=model, features=("f",), evaluation=EvaluationSpec())
    place = run(folder, **({"request": request, "records": (record,)} | changes))
    if benchmark:
        write_samples(samples_uri(place, "shapes", "en"), table, {"benchmark": asked.model_dump_json()})
    else:
        header = json.dumps(evaluation(request=request).header.content())
        write_samples(samples_uri(place, "shapes", "test"), of_records([(record, table)]), {"evaluation": header})
    return place


def samples(place: str) -> Path:
    (found,) = (Path(place) / "evaluation").iterdir()
    return found


AGAIN = "run `sharelock evaluate` again to compare it in pairs"


class TestPairs:
    @pytest.mark.parametrize("benchmark", [False, True])
    def test_runs_are_compared_on_the_same_samples(self, benchmark: bool, tmp_path: Path) -> None:
        places = [with_samples(tmp_path / name, right, benchmark) for name, right in (("a", 1), ("b", 8), ("c", 3))]
        found = compare(places, str(tmp_path / "out"))
        rows = [(each.measure.metric, each.model.name, each.difference.value) for each in found.paired]
        assert rows == [
            (f"{direction} recall@1", model, pytest.approx(value))
            for direction in ("image to text", "text to image")
            for model, value in (("b", 0.7), ("c", 0.2))
        ]
        # Seven captions, all found by the second model alone: two tails of a fair coin.
        assert found.paired[0].p == pytest.approx(2 / 2**7)
        assert found.paired[0].p_holm == pytest.approx(4 * 2 / 2**7)
        assert found.as_json()["paired"] == [each.row() for each in found.paired]
        assert pq.read_table(tmp_path / "out" / "compare-paired.parquet").to_pylist() == found.as_json()["paired"]

    def test_in_an_object_store(self, bucket: str, tmp_path: Path) -> None:
        for name, right in (("a", 1), ("b", 8)):
            local = with_samples(tmp_path / name, right)
            for path in (samples(local).relative_to(tmp_path), Path(name, "evaluation.json")):
                storage.write_bytes(f"{bucket}/runs/{path}", (tmp_path / path).read_bytes())
        assert len(compare([f"{bucket}/runs/a", f"{bucket}/runs/b"]).paired) == 2

    def test_of_an_older_run_without_samples_are_left_out_with_a_note(self, tmp_path: Path) -> None:
        places = [with_samples(tmp_path / name, right) for name, right in (("a", 1), ("b", 8))]
        samples(places[1]).unlink()
        found = compare(places)
        assert found.paired == ()
        title = "shapes: image to text recall@1 and 1 more"
        assert found.notes[0] == f"{title}: b has no samples, which older versions did not store: {AGAIN}"
        # Documents of versions 1 and 2 do not name their data.
        assert any(
            "has no samples" in note for note in compare([str(V1), str(shutil.copytree(V1, tmp_path / "v1"))]).notes
        )

    @pytest.mark.parametrize("benchmark", [False, True])
    def test_of_another_evaluation_are_left_out_with_a_note(self, benchmark: bool, tmp_path: Path) -> None:
        places = [with_samples(tmp_path / name, right, benchmark) for name, right in (("a", 1), ("b", 8), ("c", 3))]
        # An evaluation that was killed between both files.
        samples(places[1]).write_bytes(samples(places[2]).read_bytes())
        found = compare(places)
        assert {each.model.name for each in found.paired} == {"c"}
        assert found.notes[0].endswith(f"the samples of b are of another evaluation than its scores: {AGAIN}")

    def test_damaged_samples_are_one_line(self, tmp_path: Path) -> None:
        places = [with_samples(tmp_path / name, right) for name, right in (("a", 1), ("b", 8))]
        path = samples(places[1])
        whole = path.read_bytes()
        table = pq.read_table(path)
        for damaged, why in (
            (b"", ".*"),
            (whole[: len(whole) // 2], ".*"),
            (parquet(table.replace_schema_metadata()), "its request cannot be read"),
            (parquet(table.replace_schema_metadata({"benchmark": "{}"})), "its request cannot be read"),
            (parquet(table.replace_schema_metadata({"evaluation": "{"})), ".*"),
        ):
            path.write_bytes(damaged)
            with pytest.raises(
                RunError, match=rf"shapes-test\.parquet is damaged \({why}\): delete it and run"
            ) as error:
                compare(places)
            assert "\n" not in str(error.value)

    def test_samples_of_a_newer_version_are_refused_by_its_number(self, tmp_path: Path) -> None:
        places = [with_samples(tmp_path / name, right) for name, right in (("a", 1), ("b", 8))]
        newer = {"evaluation": json.dumps({"schema_version": 99})}
        samples(places[1]).write_bytes(parquet(pq.read_table(samples(places[1])).replace_schema_metadata(newer)))
        with pytest.raises(NewerVersionError, match=r"shapes-test\.parquet was made by a newer version"):
            compare(places)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


class TestWrongRequests:
    def test_one_line_says_what_to_do(self, tmp_path: Path) -> None:
        here, empty = run(tmp_path / "a"), tmp_path / "empty"
        empty.mkdir()
        for places, message in (
            ([str(tmp_path / "nowhere")], "nowhere: name the folder of a run, or its evaluation.json"),
            ([str(tmp_path / "nowhere.json")], "no evaluation at .*nowhere.json: check the path"),
            ([str(empty)], "empty holds no evaluation: run `sharelock evaluate`"),
            ([here, here], "is given 2 times: give each run once"),
            ([here, f"{here}/"], "is given 2 times"),
            ([f"{here}/evaluation.json", here], "is given 2 times"),
        ):
            with pytest.raises(RequestError, match=message) as error:
                compare(places)
            assert "\n" not in str(error.value)

    def test_a_newer_version_is_refused_by_its_number(self, tmp_path: Path) -> None:
        (tmp_path / "evaluation.json").write_text(json.dumps({"schema_version": 99}))
        with pytest.raises(NewerVersionError, match=r"evaluation\.json was made by a newer version"):
            compare([str(tmp_path)])

    def test_another_document_is_no_evaluation(self) -> None:
        with pytest.raises(RunError, match=r"training\.json is damaged .*: name the evaluation\.json of a run"):
            compare([str(V1 / "training.json")])

    def test_nothing_is_written_then(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError):
            compare([run(tmp_path / "a"), str(tmp_path / "nowhere")], str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


class TestCommand:
    def test_prints_a_table_and_writes_what_is_asked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out"
        cli.main(["compare", run(tmp_path / "a"), run(tmp_path / "b"), "--output", str(out)])
        said = capsys.readouterr().out
        for text in ("shapes: top-1", "100.0%", "43.9% to 100.0%", "33.3%", "note: no published score"):
            assert text in said
        assert f"report: {out}/compare.html" in said
        assert pq.read_table(out / "compare.parquet").column("model").to_pylist()[:1] == ["a"]

    def test_prints_the_pairs_in_a_second_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["compare", with_samples(tmp_path / "a", 1), with_samples(tmp_path / "b", 8)])
        said = " ".join(capsys.readouterr().out.split())
        for text in ("difference", "+70.0", "0.016", "0.031", "McNemar", "Differences from a on the same samples"):
            assert text in said
        assert "Holm's correction is for all 2 comparisons" in said

    def test_json_is_one_object(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["compare", run(tmp_path / "a"), "--json"])
        said = json.loads(capsys.readouterr().out)
        first = said["scores"][0]
        assert (first["model"], first["metric"], first["value"], first["ties"]) == ("a", "top-1", 1.0, "strict")
        assert said["page"] is None

    def test_hostile_names_are_printed_as_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["compare", run(tmp_path / "[bold]\x1b[31m")])
        said = capsys.readouterr().out
        assert "[bold]" in said
        assert "\x1b" not in said
