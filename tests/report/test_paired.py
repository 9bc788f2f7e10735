"""Runs are compared with the first on the same samples, and what is not the same is not paired."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binomtest

from sharelock_ray.evaluation.ranks import nearest, ranks, units
from sharelock_ray.evaluation.result import (
    CompositionalRecord,
    EvaluationRecord,
    MultiLabelRecord,
    NeighboursRecord,
    RetrievalRecord,
    ZeroShotRecord,
)
from sharelock_ray.evaluation.samples import classified, of_records, retrieved
from sharelock_ray.evaluation.statistics import compare, holm
from sharelock_ray.evaluation.tasks.compositional import choices, compositional
from sharelock_ray.evaluation.tasks.multi_label import compare_precision, multi_label
from sharelock_ray.evaluation.tasks.retrieval import recalls
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot_ranks
from sharelock_ray.report.comparison import Model, PairedScore, Score, compared, run_scores
from sharelock_ray.report.paired import UnpairedError, paired_scores

SCOPE: dict[str, Any] = {"dataset": "shapes", "split": "test", "model_step": 1}
IMAGES, CLASSES = 60, 5
NAMES = [f"class {c}" for c in range(CLASSES)]
LABELS = np.arange(IMAGES) % CLASSES
KEYS = pa.array([f"{place:04d}" for place in range(IMAGES)])
Scored = tuple[EvaluationRecord, pa.Table]


def embedded(seed: int, noise: float, owner: np.ndarray = LABELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of items, and of what they are near."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.eye(int(owner.max()) + 1)
    items = prototypes[torch.from_numpy(owner)]
    return units(items + noise * torch.randn(items.shape, generator=generator)), prototypes


def zero_shot(seed: int, noise: float = 0.6) -> list[Scored]:
    image, prototypes = embedded(seed, noise)
    return [
        (
            ZeroShotRecord(**SCOPE, templates=("{}",), result=result),
            classified(KEYS, pa.array(LABELS, pa.int32()), classes[nearest(image, prototypes[classes])], found),
        )
        for result, found, classes in zero_shot_ranks(image, LABELS, prototypes, NAMES)
    ]


def retrieval(seed: int, captions: int = 1, language: str | None = None, noise: float = 0.3) -> Scored:
    """As many captions of each image."""
    owner = np.repeat(np.arange(IMAGES), captions)
    text, image = embedded(seed, noise, owner)
    texts = pa.table(
        {
            "caption_id": pa.array(np.tile(np.arange(captions), IMAGES), pa.int32()),
            "text": [f"caption {place}" for place in range(len(owner))],
        }
    )
    by_image, by_text = ranks(image, text, owner)
    record = RetrievalRecord(**SCOPE, language=language, result=recalls(by_image, by_text, owner, (1, 5), "strict"))
    return record, retrieved(KEYS, owner, texts, by_image, by_text)


def chosen(seed: int, shared: bool) -> Scored:
    """Two images and two captions; each pair of images has one example or two."""
    image, text = (embedded(seed + add, 0.7, np.arange(IMAGES) % 4)[0].reshape(-1, 2, 4) for add in (0, 1))
    names = [[f"{place // (2 if shared else 1)}", "other"] for place in range(len(image))]
    of_images = np.unique(names, axis=0, return_inverse=True)[1].reshape(-1)
    found = choices(image, text)
    table = {"example": np.arange(len(image)), "key": pa.array(names), "kind": ["swap"] * len(image)}
    table |= {"text": found.text, "image": found.image, "group": found.group, "tied": found.tied}
    result = compositional(image, text, image_of_sample=of_images)
    return CompositionalRecord(**SCOPE, result=result), pa.table(table)


def pairs_of(*runs: Sequence[Scored], table_of: Callable[[int], pa.Table] | None = None) -> Any:
    """The comparisons of runs `run0`, `run1` … and the notes; `table_of` gives other samples than those of a run."""
    tables = {f"run{place}": of_records(list(run)) for place, run in enumerate(runs)}
    scores = [
        score
        for place, run in enumerate(runs)
        for score in run_scores(Model(f"run{place}"), [record for record, _ in run], f"/run{place}/evaluation.json")
    ]

    def read(score: Score) -> pa.Table:
        found = table_of(int(score.model.name[3:])) if table_of else tables[score.model.name]
        if found is None:
            raise UnpairedError(f"{score.model.name} has no samples")
        return found

    return paired_scores(compared(scores).main, read)


def by_metric(found: Sequence[PairedScore]) -> dict[str, PairedScore]:
    return {each.measure.metric: each for each in found}


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(0).permutation(len(table)))


class TestComparisons:
    def test_of_classification_are_mcnemars_test_on_the_same_images(self) -> None:
        runs = [zero_shot(seed, noise) for seed, noise in ((0, 0.5), (1, 0.9))]
        ((found,), notes) = pairs_of(*runs)
        first, second = (np.array(run[0][1]["rank"]) == 0 for run in runs)
        assert found.difference.value == pytest.approx(second.mean() - first.mean())
        assert found.difference.value == pytest.approx(
            runs[1][0][0].result.top_1.value - runs[0][0][0].result.top_1.value
        )
        assert found.difference.low < found.difference.value < found.difference.high
        assert (found.first_only, found.model_only) == ((first & ~second).sum(), (second & ~first).sum())
        exact = binomtest(found.first_only, found.first_only + found.model_only).pvalue
        assert (found.test, found.p, found.p_holm) == ("McNemar", pytest.approx(exact), pytest.approx(exact))
        assert (found.first.name, found.model.name, notes) == ("run0", "run1", [])

    def test_do_not_depend_on_the_order_of_rows(self) -> None:
        runs = [[*zero_shot(seed), retrieval(seed, 2)] for seed in (0, 1)]
        mixed = [shuffled(of_records(run)) for run in runs]
        assert pairs_of(*runs, table_of=lambda place: mixed[place]) == pairs_of(*runs)

    def test_of_captions_resample_images_that_have_several(self) -> None:
        runs = [[retrieval(seed, 3, noise=noise)] for seed, noise in ((0, 0.3), (1, 0.5))]
        found = by_metric(pairs_of(*runs)[0])
        assert (found["image to text recall@1"].test, found["text to image recall@1"].test) == ("McNemar", "bootstrap")
        first, second = (np.array(run[0][1]["rank"])[IMAGES:] == 0 for run in runs)
        expected = compare(first, second, np.repeat(np.arange(IMAGES), 3))
        assert found["text to image recall@1"].difference == expected.difference
        assert found["text to image recall@1"].p == expected.p_bootstrap

    def test_of_single_captions_are_mcnemars_test(self) -> None:
        found = by_metric(pairs_of([retrieval(0)], [retrieval(1)])[0])
        assert {each.test for each in found.values()} == {"McNemar"}
        # The smallest k is the main score.
        assert list(found) == ["image to text recall@1", "text to image recall@1"]

    @pytest.mark.parametrize(("shared", "test"), [(False, "McNemar"), (True, "bootstrap")])
    def test_of_choices_resample_images_that_examples_share(self, shared: bool, test: str) -> None:
        runs = [[chosen(seed, shared)] for seed in (0, 5)]
        found = by_metric(pairs_of(*runs)[0])
        assert list(found) == ["text score", "image score", "group score"]
        assert {each.test for each in found.values()} == {test}
        values = [run[0][0].result.total.group.value for run in runs]
        assert found["group score"].difference.value == pytest.approx(values[1] - values[0])

    def test_of_mean_average_precision_resample_images(self) -> None:
        has_class = np.eye(CLASSES, dtype=bool)[LABELS] | (np.random.default_rng(0).random((IMAGES, CLASSES)) < 0.2)
        lists = pa.array([np.flatnonzero(row).tolist() for row in has_class], pa.list_(pa.int32()))
        runs, scores = [], []
        for seed, noise in ((0, 0.5), (1, 1.0)):
            image, prototypes = embedded(seed, noise)
            record = MultiLabelRecord(
                **SCOPE, templates=("{}",), result=multi_label(image, has_class, prototypes, NAMES)
            )
            scores.append((image @ prototypes.T).numpy())
            table = pa.table({"key": KEYS, "label": lists, "score": pa.array(scores[-1].tolist())})
            runs.append([(record, table)])
        ((found,), _) = pairs_of(*runs)
        expected, p = compare_precision(*scores, has_class)
        assert (found.difference, found.p, found.test) == (expected, p, "bootstrap")
        assert found.first_only is None

    def test_of_each_language_use_its_own_rows(self) -> None:
        runs = [[retrieval(seed, language=code) for seed, code in ((s, None), (s + 1, "de"))] for s in (0, 2)]
        found, _ = pairs_of(*runs)
        for each in found:
            place = 0 if each.measure.language is None else 1
            direction = each.measure.metric.partition(" recall")[0].replace(" ", "_")
            values = [getattr(run[place][0].result, direction)[1].value for run in runs]
            assert each.difference.value == pytest.approx(values[1] - values[0])
        assert {each.measure.language for each in found} == {None, "de"}

    def test_are_with_the_first_run_and_corrected_together(self) -> None:
        runs = [[*zero_shot(seed, noise), retrieval(seed)] for seed, noise in ((0, 0.4), (1, 1.5), (2, 0.5))]
        found, _ = pairs_of(*runs)
        assert [(each.measure.metric, each.model.name) for each in found[:2]] == [("top-1", "run1"), ("top-1", "run2")]
        assert {each.first.name for each in found} == {"run0"}
        assert len(found) == 6
        assert [each.p_holm for each in found] == holm([each.p for each in found])
        # The least likely difference is multiplied by the number of all comparisons.
        least = min(found, key=lambda each: each.p)
        assert least.p_holm == pytest.approx(6 * least.p)

    def test_need_the_first_run(self) -> None:
        found, notes = pairs_of([retrieval(0)], zero_shot(1), zero_shot(2))
        assert (found, notes) == ([], [])

    def test_of_one_run_are_none(self) -> None:
        assert pairs_of(zero_shot(0)) == ([], [])
        assert pairs_of() == ([], [])


class TestNotTheSame:
    @pytest.mark.parametrize(
        ("column", "value", "name"),
        [("key", pa.scalar("new"), "images"), ("label", pa.scalar(3, pa.int32()), "labels")],
    )
    def test_other_images_or_labels(self, column: str, value: pa.Scalar, name: str) -> None:
        runs = [zero_shot(0), zero_shot(1)]
        found, notes = pairs_of(*runs, table_of=lambda place: changed(of_records(runs[place]), column, value, place))
        assert found == []
        assert notes == [
            f"shapes: top-1 among all classes: run1 and run0 are not compared in pairs: their {name} differ"
        ]

    @pytest.mark.parametrize(
        ("column", "value"), [("text", pa.scalar("new")), ("caption_id", pa.scalar(7, pa.int32()))]
    )
    def test_other_captions(self, column: str, value: pa.Scalar) -> None:
        runs = [[retrieval(0)], [retrieval(1)]]
        found, notes = pairs_of(
            *runs, table_of=lambda place: changed(of_records(runs[place]), column, value, place, IMAGES)
        )
        # Queries that are images have none.
        assert list(by_metric(found)) == ["image to text recall@1"]
        assert notes[0].endswith("run1 and run0 are not compared in pairs: their captions differ")

    def test_captions_of_older_files_are_taken_for_equal(self) -> None:
        runs = [[retrieval(0)], [retrieval(1)]]
        found, notes = pairs_of(*runs, table_of=lambda place: of_records(runs[place]).drop_columns("text"))
        assert (len(found), notes) == (2, [])

    def test_other_images_of_examples(self) -> None:
        found, notes = pairs_of([chosen(0, False)], [chosen(0, True)])
        assert found == []
        assert notes == ["shapes: text score and 2 more: run1 and run0 are not compared in pairs: their images differ"]

    def test_frozen_features_that_are_the_same_are_no_comparison(self) -> None:
        (record, table), *_ = zero_shot(0)
        result = {**record.result.model_dump(exclude={"candidate_set"})}
        result |= {"training_images": 9, "neighbours": 3, "temperature": 0.1}
        run = [(NeighboursRecord(**SCOPE, result=result), table)]
        found, notes = pairs_of(run, run)
        assert found == []
        assert notes[0].endswith("run1 and run0 are not compared in pairs: their frozen features are the same")

    def test_missing_samples_are_said_once(self) -> None:
        runs = [[*zero_shot(seed), retrieval(seed)] for seed in range(3)]
        found, notes = pairs_of(*runs, table_of=lambda place: of_records(runs[place]) if place else None)
        assert found == []
        assert notes == ["shapes: top-1 among all classes and 2 more: run0 has no samples"]


def changed(table: pa.Table, column: str, value: pa.Scalar, when: int, row: int = 0) -> pa.Table:
    """The table with one other value, if `when`."""
    if not when:
        return table
    values = table[column].to_pylist()
    values[row] = value.as_py()
    return table.set_column(table.column_names.index(column), column, pa.array(values, value.type))
