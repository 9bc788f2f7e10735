"""Scores of runs stand together only if they compare, and published ones stand beside those of all of a benchmark."""

from typing import Any

import numpy as np
import pytest
import torch

from sharelock_ray.evaluation.result import (
    BenchmarkRequest,
    CompositionalRecord,
    EvaluationRecord,
    FeatureSetUse,
    MultiLabelRecord,
    NeighboursRecord,
    ProbeRecord,
    RetrievalRecord,
    ZeroShotRecord,
)
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.evaluation.tasks.compositional import compositional
from sharelock_ray.evaluation.tasks.multi_label import multi_label
from sharelock_ray.evaluation.tasks.neighbours import neighbours
from sharelock_ray.evaluation.tasks.probe import linear_probe
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.report.comparison import (
    Comparison,
    Measure,
    Model,
    compared,
    published_scores,
    run_scores,
    value_texts,
)

A, B = Model("a"), Model("b")
NAMES = ["circle", "square", "star"]
EYE, LABELS = torch.eye(3), np.arange(3)
PUBLISHED_NOTE = "published scores follow the protocols of their sources"


def classified(ties: str = "strict", images: int = 3, **scope: Any) -> ZeroShotRecord:
    """Zero-shot classification of which two thirds is right, as if of so many images."""
    found = zero_shot(EYE, np.array([0, 1, 1]), EYE, NAMES, ties=ties)[-1]
    found = found.model_copy(update={"images": images})
    fields = {"dataset": "shapes", "split": "test", "model_step": 1, "templates": ("a {}",)}
    return ZeroShotRecord(**(fields | scope), result=found)


def retrieved(recall_at: tuple[int, ...] = (1, 3), images: int = 3, **scope: Any) -> RetrievalRecord:
    fields = {"dataset": "shapes", "split": "test", "model_step": 1}
    found = retrieval(EYE, EYE, LABELS, recall_at).model_copy(update={"images": images})
    return RetrievalRecord(**(fields | scope), result=found)


def comparison(*records: tuple[Model, EvaluationRecord]) -> Comparison:
    return compared([score for model, record in records for score in run_scores(model, [record], "here")])


def models(found: Comparison, metric: str = "top-1") -> list[list[str]]:
    """The models of each group of a metric."""
    groups = found.groups.items()
    return [[score.model.name for score in scores] for of, scores in groups if of.metric == metric]


def measure(record: EvaluationRecord, metric: str) -> Measure:
    (found,) = [each.measure for each in run_scores(A, [record], "here") if each.measure.metric == metric]
    return found


class TestScores:
    def test_a_score_says_what_it_is_of(self) -> None:
        first = run_scores(A, [classified()], "here")[0]
        row = first.row()
        expected = {
            "model": "a",
            "published": False,
            "task": "zero_shot_classification",
            "dataset": "shapes",
            "split": "test",
            "candidate_set": "all",
            "language": None,
            "metric": "top-1",
            "n": 3,
            "candidates": 3,
            "ties": "strict",
            "tied": 1,
            "chance": pytest.approx(1 / 3),
            "value": pytest.approx(2 / 3),
            "source": "here",
        }
        assert {name: row[name] for name in expected} == expected
        assert 0 < row["low"] < row["value"] < row["high"] < 1

    def test_recall_counts_queries_and_candidates_by_direction(self) -> None:
        owners = np.array([0, 0, 1, 2])
        found = retrieval(EYE, torch.eye(3)[owners], owners, (1, 3))
        record = RetrievalRecord(dataset="shapes", split="test", model_step=1, language="de", result=found)
        of_images, of_texts = (measure(record, f"{name} recall@3") for name in ("image to text", "text to image"))
        assert (of_images.n, of_images.candidates, of_images.items) == (3, 4, 3)
        assert (of_texts.n, of_texts.candidates, of_texts.language) == (4, 3, "de")

    def test_each_kind_of_change_has_its_scores(self) -> None:
        pairs = EYE[:2].expand(3, 2, 3)
        result = compositional(pairs, pairs, ["order", "order", "object"])
        record = CompositionalRecord(dataset="w", split="test", model_step=1, result=result)
        found = {(s.measure.kind, s.measure.metric): s for s in run_scores(A, [record], "here")}
        assert found[None, "group score"].chance == pytest.approx(1 / 6)
        assert (found["order", "text score"].measure.n, found["object", "text score"].measure.n) == (2, 1)
        assert [s.measure.kind for s in found.values() if s.main] == [None] * 3

    def test_every_task_has_a_main_score(self) -> None:
        scope = {"dataset": "shapes", "split": "test", "model_step": 1}
        multiple = multi_label(EYE, np.eye(3, dtype=bool), EYE, NAMES)
        records = {
            "shapes: nearest neighbours, top-1": NeighboursRecord(
                **scope, result=neighbours(EYE, LABELS, EYE, LABELS, NAMES)[0]
            ),
            "shapes: linear probe, top-1": ProbeRecord(
                **scope, result=linear_probe(EYE, LABELS, EYE, LABELS, NAMES)[0]
            ),
            "shapes: mean average precision": MultiLabelRecord(**scope, templates=("{}",), result=multiple),
        }
        for title, record in records.items():
            assert [s.measure.title for s in run_scores(A, [record], "here") if s.main] == [title]

    def test_a_mean_per_class_of_an_older_document_has_no_interval(self) -> None:
        record = classified()
        old = record.result.model_copy(update={"mean_per_class_interval": None})
        found = run_scores(A, [record.model_copy(update={"result": old})], "here")
        (score,) = [each for each in found if each.measure.metric == "mean per class"]
        assert (score.low, score.high) == (None, None)


class TestGroups:
    def test_equal_measures_stand_together(self) -> None:
        found = comparison((A, classified()), (B, classified()))
        assert models(found) == [["a", "b"]]
        assert not [note for note in found.notes if "apart" in note]

    @pytest.mark.parametrize(
        ("other", "differ"),
        [
            (classified(images=4), "images, queries"),
            (classified(ties="first_index"), "the rule for ties"),
        ],
    )
    def test_what_does_not_compare_is_kept_apart_and_noted(self, other: ZeroShotRecord, differ: str) -> None:
        found = comparison((A, classified()), (B, other))
        assert models(found) == [["a"], ["b"]]
        title = "shapes: top-1 among all classes"
        assert f"{title}: scores are kept apart, since they differ in {differ}" in found.notes
        assert "no two runs were scored on the same images by the same rules" in found.notes

    @pytest.mark.parametrize(("field", "differ"), [("class_digest", "class names"), ("truth_digest", "right answers")])
    def test_other_names_or_answers_are_kept_apart(self, field: str, differ: str) -> None:
        asked = BenchmarkRequest(
            name="shapes",
            language="en",
            ties="strict",
            recall_at=(),
            model="m",
            images=FeatureSetUse(path="a/b", digest="1"),
            texts=FeatureSetUse(path="a/c", digest="2"),
            preprocessing={},
            class_digest="3",
            truth_digest="4",
        )
        same, other = (asked.model_copy(update=change) for change in ({"model": "n"}, {field: "5"}))
        assert models(comparison((A, classified(benchmark=asked)), (B, classified(benchmark=same)))) == [["a", "b"]]
        found = comparison((A, classified(benchmark=asked)), (B, classified(benchmark=other)))
        assert models(found) == [["a"], ["b"]]
        title = "shapes (en): top-1 among all classes"
        assert f"{title}: scores are kept apart, since they differ in {differ}" in found.notes

    def test_other_class_names_of_a_split_are_kept_apart_and_captions_have_none(self) -> None:
        record = classified()
        captions = record.result.model_copy(update={"candidate_set": "captions"})
        for scored, apart in (
            (record, True),
            (record.model_copy(update={"result": captions}), False),
            (retrieved(), False),
        ):
            scores = [*run_scores(A, [scored], "here", "1"), *run_scores(B, [scored], "here", "2")]
            assert any(note.endswith("they differ in class names") for note in compared(scores).notes) == apart

    def test_other_candidates_are_kept_apart(self) -> None:
        record = classified()
        more = record.result.model_copy(update={"candidates": 64})
        found = comparison((A, record), (B, record.model_copy(update={"result": more})))
        assert models(found) == [["a"], ["b"]]
        assert any(note.endswith("they differ in candidates") for note in found.notes)

    @pytest.mark.parametrize("change", [{"dataset": "photos"}, {"split": "validation"}])
    def test_other_data_need_no_note(self, change: dict[str, str]) -> None:
        found = comparison((A, classified()), (B, classified(**change)))
        assert models(found) == [["a"], ["b"]]
        assert not [note for note in found.notes if "apart" in note]

    def test_languages_are_kept_apart_and_said_of_once(self) -> None:
        records = [(A, retrieved(language=code)) for code in ("de", "ja")]
        found = comparison(*records, *((B, retrieved(images=4, language=code)) for code in ("de", "ja")))
        notes = [note for note in found.notes if "apart" in note]
        assert notes == [
            "shapes (de): image to text recall@1 and 1 more: "
            "scores are kept apart, since they differ in images, queries",
            "shapes (de): text to image recall@1 and 1 more: "
            "scores are kept apart, since they differ in images, candidates",
        ]

    def test_the_smallest_k_is_main(self) -> None:
        found = comparison((A, retrieved((1, 3))))
        assert [of.metric for of in found.main] == ["image to text recall@1", "text to image recall@1"]

    def test_other_templates_are_noted(self) -> None:
        found = comparison((A, classified()), (B, classified(templates=("one {}", "two {}"))))
        assert models(found) == [["a", "b"]]
        assert "shapes: top-1 among all classes: the runs have different templates" in found.notes

    def test_data_without_a_name_are_noted(self) -> None:
        found = comparison((A, classified(dataset=None)), (B, classified(dataset=None)))
        assert models(found) == [["a", "b"]]
        assert any(note.startswith("documents of versions 1 and 2 do not name their data set") for note in found.notes)


class TestPublished:
    def test_values_are_fractions_with_source_and_without_interval(self) -> None:
        (score,) = [
            each
            for each in published_scores()
            if (each.model.name, each.model.data, each.measure.dataset) == ("ShareLock (2024)", "CC12M", "imagenet-1k")
        ]
        assert (score.value, score.low, score.high, score.measure.ties) == (0.591, None, None, None)
        assert (score.model.vision, score.model.published) == ("DINOv2 ViT-B/14", True)
        assert "github.com/JonaRuthardt/ShareLock" in score.source

    def test_stand_last_beside_a_run_on_the_whole_benchmark(self) -> None:
        found = comparison((A, classified(dataset="imagenet-1k", images=50_000)))
        (group,) = models(found)
        assert group[0] == "a"
        assert {"LiT (2024)", "ShareLock (2025)", "SigLIP 2 g-opt/16, 384 px"} <= set(group)
        assert any(note.startswith(PUBLISHED_NOTE) for note in found.notes)

    @pytest.mark.parametrize(
        "record",
        [
            classified(dataset="imagenet-1k", images=1000),
            classified(dataset="imagenet", images=50_000),
            retrieved(dataset="coco", images=5000, language="de"),
        ],
        ids=["some images", "another name", "another language"],
    )
    def test_do_not_stand_beside_other_data(self, record: EvaluationRecord) -> None:
        found = comparison((A, record))
        assert all(not score.model.published for scores in found.groups.values() for score in scores)
        assert not any(note.startswith(PUBLISHED_NOTE) for note in found.notes)

    def test_do_not_stand_beside_the_classes_that_have_images(self) -> None:
        record = classified(dataset="imagenet-1k", images=50_000)
        present = record.result.model_copy(update={"candidate_set": "present"})
        assert models(comparison((A, record.model_copy(update={"result": present})))) == [["a"]]

    def test_winoground_and_coco_meet_their_runs(self) -> None:
        pairs = EYE[:2].expand(400, 2, 3)
        winoground = CompositionalRecord(
            dataset="winoground", split="test", model_step=1, result=compositional(pairs, pairs)
        )
        found = comparison((A, winoground), (A, retrieved(dataset="coco", images=5000)))
        assert "SAIL-L (NV2)" in models(found, "group score")[0]
        assert "freeze-align" in models(found, "text to image recall@1")[0]
        assert models(found, "image to text recall@3") == [["a"]]


class TestViews:
    def test_json_has_every_score(self) -> None:
        found = comparison((A, classified()))
        said = found.as_json()
        assert len(said["scores"]) == len(found.scores) == 3 + len(published_scores())
        assert said["page"] is None
        assert said["notes"] == list(found.notes)

    def test_the_table_shows_few_languages_and_counts_many(self) -> None:
        few, many = (
            comparison(*((A, retrieved(language=f"l{index}")) for index in range(count))).table() for count in (4, 5)
        )
        assert (few.row_count, few.caption) == (16, None)
        assert many.row_count == 0
        assert "5 languages" in str(many.caption)

    def test_values_are_percentages(self) -> None:
        value = Estimate(value=0.5, low=0.25, high=0.75)
        record = classified()
        record = record.model_copy(update={"result": record.result.model_copy(update={"top_1": value})})
        columns = [list(column.cells) for column in comparison((A, record)).table().columns]
        assert [str(cells[0]) for cells in columns] == [
            "shapes: top-1 among all classes",
            "a",
            "50.0%",
            "25.0% to 75.0%",
            "33.3%",
        ]
        assert str(columns[0][1]) == "  3 queries, 3 candidates, ties strict"

    def test_published_values_have_the_digits_of_their_source(self) -> None:
        texts = {
            score.measure.metric: value_texts(score)
            for score in published_scores()
            if score.model.name == "SAIL-L (NV2)" and score.measure.dataset in ("winoground", "imagenet-1k")
        }
        assert texts["text score"] == ["40.25%", "published", ""]
        assert texts["top-1"] == ["73.4%", "published", ""]
