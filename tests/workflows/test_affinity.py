"""`sharelock affinity`: which runs and scores are compared, what is written, and one line for a wrong request."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from sharelock_ray import cli, storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.result import RetrievalRecord, ZeroShotRecord
from sharelock_ray.evaluation.statistics import Estimate, proportion
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.recipe.schema import EvaluationSpec
from sharelock_ray.study.language_scores import LanguageScore
from sharelock_ray.study.trials import Study, Trial
from sharelock_ray.workflows.affinity import affinity
from sharelock_ray.workflows.evaluate import Evaluation, EvaluationRequest

CHECKPOINT = Path(__file__).parents[1] / "documents" / "v1" / "run" / "best" / "checkpoint.json"
LANGUAGE = [0.12, 0.2, 0.24, 0.31, 0.35, 0.41]
HITS = [30, 41, 38, 47, 52, 50]
EYE = torch.eye(3)


def checkpoint(folder: Path, name: str, vision: str = "dino", **settings: Any) -> str:
    """A checkpoint of a language encoder; returns its SHA-256."""
    content = json.loads(CHECKPOINT.read_text())
    content["language"]["encoder"] |= {"name": name, "model": f"org/{name}"}
    content["vision"]["encoder"]["name"] = vision
    content["spec"] |= settings
    path = str(folder / "best" / "checkpoint.json")
    storage.write_json(path, content)
    return storage.sha256_of(path)


def run(folder: Path, name: str, hits: int, retrieves: bool = False, **changes: Any) -> str:
    """An evaluated run, with a number of hits among 100 images."""
    digest = checkpoint(folder, name, **changes)
    result = zero_shot(EYE, np.arange(3), EYE, ["a", "b", "c"])[0]
    result = result.model_copy(update={"top_1": proportion(np.arange(100) < hits), "images": 100})
    scope: dict[str, Any] = {"dataset": "shapes", "split": "test", "model_step": 1}
    records: tuple[Any, ...] = (ZeroShotRecord(**scope, templates=("{}",), result=result),)
    if retrieves:
        records += (RetrievalRecord(**scope, result=retrieval(EYE, EYE, np.arange(3))),)
    request = EvaluationRequest(model=digest, features=("f",), evaluation=EvaluationSpec())
    storage.write_json(str(folder / "evaluation.json"), Evaluation(request=request, records=records).content())
    return str(folder)


def runs(folder: Path, hits: Sequence[int] = HITS, **changes: Any) -> list[str]:
    return [run(folder / f"run-{i}", f"model-{i}", of, **changes) for i, of in enumerate(hits)]


def table(folder: Path, *more: str) -> str:
    rows = [f"org/model-{i},M,h,{value},family-{i // 2}" for i, value in enumerate(LANGUAGE)]
    path = folder / "scores.csv"
    path.write_text("\n".join(["model,metric,harness,value,family", *rows, *more]) + "\n")
    return str(path)


class TestRuns:
    def test_are_matched_with_the_scores_of_their_language_models(self, tmp_path: Path) -> None:
        found = affinity(runs(tmp_path), scores=[table(tmp_path)])
        assert found.visual == "shapes: top-1 among all classes"
        assert [point.language for point in found.points] == LANGUAGE
        assert [point.visual for point in found.points] == [of / 100 for of in HITS]
        assert found.pearson.value == pytest.approx(stats.pearsonr(LANGUAGE, HITS).statistic)
        assert found.points[0].visual_error == pytest.approx((0.3 * 0.7 / 100) ** 0.5, rel=0.05)
        assert found.points[1].runs == ("run-1",)

    def test_of_several_seeds_are_one_model(self, tmp_path: Path) -> None:
        seeds = [run(tmp_path / f"seed-{seed}", "model-0", 30 + seed, seed=seed) for seed in (1, 2)]
        found = affinity([*runs(tmp_path), *seeds], scores=[table(tmp_path)])
        assert (len(found.points), found.points[0].visual) == (6, pytest.approx(0.31))
        assert "the language encoders have different numbers of seeds" in found.notes

    def test_of_one_encoder_that_differ_otherwise_are_refused(self, tmp_path: Path) -> None:
        other = run(tmp_path / "other", "model-0", 30, steps=99, seed=1)
        with pytest.raises(RequestError, match=r"run-0, other have one language encoder and differ in steps"):
            affinity([*runs(tmp_path), other], scores=[table(tmp_path)])

    def test_of_two_vision_encoders_are_refused(self, tmp_path: Path) -> None:
        other = run(tmp_path / "other", "model-9", 30, vision="resnet")
        with pytest.raises(RequestError, match=r"different vision encoders \(dino, resnet\): give runs of one"):
            affinity([*runs(tmp_path), other], scores=[table(tmp_path)])

    def test_that_differ_in_more_than_the_language_encoder_are_said(self, tmp_path: Path) -> None:
        found = affinity([*runs(tmp_path)[1:], run(tmp_path / "x", "model-0", 30, steps=9)], scores=[table(tmp_path)])
        assert "the runs differ in more than the language encoder: steps" in found.notes

    def test_whose_checkpoint_is_not_the_evaluated_one_are_refused(self, tmp_path: Path) -> None:
        places = runs(tmp_path)
        checkpoint(tmp_path / "run-2", "model-2", steps=77)
        with pytest.raises(RequestError, match=r"encoder of run-2 is unknown, .*: evaluate it again"):
            affinity(places, scores=[table(tmp_path)])


class TestVisualScore:
    def test_is_chosen_by_a_part_of_its_title(self, tmp_path: Path) -> None:
        places = runs(tmp_path, retrieves=True)
        with pytest.raises(
            RequestError,
            match=r"3 visual scores: choose one with --visual \(shapes: top-1 among all classes; shapes: im",
        ):
            affinity(places, scores=[table(tmp_path)])
        assert affinity(places, scores=[table(tmp_path)], visual="Top-1").visual == "shapes: top-1 among all classes"
        with pytest.raises(RequestError, match="no visual score 'top-9': choose one"):
            affinity(places, scores=[table(tmp_path)], visual="top-9")

    def test_that_a_run_lacks_leaves_it_out(self, tmp_path: Path) -> None:
        places = runs(tmp_path)
        lacking = run(tmp_path / "other", "model-9", 1)
        content = storage.read_json(f"{lacking}/evaluation.json")
        content["records"][0]["dataset"] = "other"
        storage.write_json(f"{lacking}/evaluation.json", content)
        found = affinity([*places, lacking], scores=[table(tmp_path)], visual="shapes: top-1")
        assert found.notes[0] == "left out, without this visual score: other"


class TestStudies:
    @staticmethod
    def study(folder: Path, objective: str = "zero_shot") -> str:
        trials = []
        for i, of in enumerate(HITS):
            for seed in (0, 1):
                checkpoint(folder / f"{i}-{seed}", f"model-{i}", seed=seed)
                values = {"zero_shot": of / 100 + 0.01 * seed, "validation_loss": 1.0}
                place = str(folder / f"{i}-{seed}")
                trials.append(Trial(point={"language": f"m{i}"}, seed=seed, run=place, state="finished", values=values))
        trials.append(trials[0].model_copy(update={"state": "failed"}))
        fields: dict[str, Any] = {"name": "n", "title": "models", "note": "", "axes": {}, "seeds": (0, 1)}
        of_search = {"sampler": "grid", "scheduler": "none", "trials": tuple(trials), "storage": "s"}
        storage.write_json(str(folder / "study.json"), Study(**fields, **of_search, objective=(objective,)).content())
        return str(folder)

    def test_give_the_seeds_of_their_trials(self, tmp_path: Path) -> None:
        found = affinity([self.study(tmp_path)], scores=[table(tmp_path)])
        assert found.visual == "models: zero-shot accuracy"
        assert [point.visual for point in found.points] == pytest.approx([of / 100 + 0.005 for of in HITS])
        assert found.points[0].visual_error == pytest.approx(0.005)
        assert found.points[0].runs == ("0-0", "0-1")
        assert "left out, not finished: 1 trials" in found.notes

    def test_without_a_checkpoint_are_one_line(self, tmp_path: Path) -> None:
        place = self.study(tmp_path)
        (tmp_path / "0-0" / "best" / "checkpoint.json").write_text("{}")
        with pytest.raises(RunError, match=r"0-0/best/checkpoint\.json is damaged"):
            affinity([place], scores=[table(tmp_path)])


class TestLanguageScores:
    def test_may_be_documents_by_a_pattern(self, tmp_path: Path) -> None:
        for i, value in enumerate(LANGUAGE):
            bits = Estimate(value=1 - value, low=0.99 - value, high=1.01 - value)
            document = LanguageScore(
                model=f"model-{i}", kind="causal", bits_per_byte=bits, text_sha256="a" * 64, tokens=1, bytes=1
            )
            storage.write_json(str(tmp_path / "bits" / f"{i}.json"), document.content())
        found = affinity(runs(tmp_path), scores=[str(tmp_path / "bits" / "*.json")])
        assert (found.metric, found.harness) == ("bits per byte", "causal, text aaaaaaaa")
        assert found.lower_is_better
        assert found.pearson.value == pytest.approx(-stats.pearsonr(LANGUAGE, HITS).statistic)

    def test_that_no_pattern_matches_are_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"no language score at .*nothing"):
            affinity(runs(tmp_path), scores=[str(tmp_path / "nothing*.json")])

    def test_others_are_named_with_their_harness(self, tmp_path: Path) -> None:
        more = [f"org/model-{i},Other,{h},{v}," for h in ("one", "two") for i, v in enumerate(LANGUAGE[::-1])]
        scores = [table(tmp_path, *more)]
        found = affinity(runs(tmp_path), "m", scores=scores, others=["other@two"])
        assert [(other.metric, other.harness) for other in found.others] == [("Other", "two")]
        with pytest.raises(RequestError, match="these are of 2"):
            affinity(runs(tmp_path), "m", scores=scores, others=["other"])
        with pytest.raises(RequestError, match="the language score m@h is the one that decides"):
            affinity(runs(tmp_path), "m", scores=scores, others=["m@h"])

    def test_of_shipped_models_need_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="0 of 6 language encoders have a score in HellaSwag"):
            affinity(runs(tmp_path), "hellaswag")


class TestChoice:
    def test_is_of_the_command_only_if_it_names_the_score(self, tmp_path: Path) -> None:
        places, scores = runs(tmp_path), [table(tmp_path)]
        assert affinity(places, "m", scores=scores).named
        assert not affinity(places, scores=scores).named

    def test_of_another_score_is_remembered_in_the_folder(self, tmp_path: Path) -> None:
        more = [f"org/model-{i},Other,h,{v}," for i, v in enumerate(LANGUAGE[::-1])]
        places, scores, out = runs(tmp_path), [table(tmp_path, *more)], str(tmp_path / "out")
        assert affinity(places, "m", scores=scores, output=out).before == ()
        assert affinity(places, "m", scores=scores, output=out).before == ()
        assert affinity(places, "other", scores=scores, output=out).before == ("M, h",)
        assert (
            "Not the first choice: this folder had an analysis with M, h"
            in (tmp_path / "out/affinity.html").read_text()
        )


class TestCommand:
    def test_prints_the_result_and_writes_what_is_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        scores = ["--metric", "m", "--harness", "h", "--scores", table(tmp_path), "--predict", "new=0.3"]
        cli.main(["affinity", *runs(tmp_path), *scores, "--output", str(out)])
        said = capsys.readouterr().out
        for text in (
            "shapes: top-1",
            "M, h. Named by the command",
            "6 language models of 3 families",
            "predicted: new",
        ):
            assert text in said
        assert f"report: {out}/affinity.html" in said
        assert pq.read_table(out / "affinity.parquet").column("encoder").to_pylist()[:2] == ["model-0", "model-1"]
        assert sorted(path.name for path in out.iterdir()) == [
            f"affinity.{e}" for e in ("csv", "html", "json", "parquet")
        ]

    def test_json_is_the_document(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cli.main(["affinity", *runs(tmp_path), "--scores", table(tmp_path), "--json"])
        said = json.loads(capsys.readouterr().out)
        assert (said["schema_version"], said["metric"], len(said["points"])) == (1, "M", 6)

    def test_a_wrong_request_writes_nothing_and_exits_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as ended:
            cli.main(["affinity", *runs(tmp_path)[:3], "--scores", table(tmp_path), "--output", str(out)])
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("sharelock: 3 of 3 language encoders have a score in M")
        assert not out.exists()
