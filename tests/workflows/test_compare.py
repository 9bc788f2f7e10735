"""`sharelock compare`: what is a run, how it is named, and what is said of one that cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sharelock_ray import cli, storage
from sharelock_ray.documents import NewerVersionError
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.result import ZeroShotRecord
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
        assert storage.names(f"{bucket}/out") == ["compare.csv", "compare.html", "compare.parquet"]


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
