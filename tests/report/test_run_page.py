"""The report is one page that fetches nothing, shows what was found, and trusts no name in the data."""

import base64
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import support
from pages import Page
from sharelock_ray.evaluation.result import (
    AttributeAccuracy,
    Ceiling,
    CompositionalRecord,
    Example,
    Loss,
    MultiLabelRecord,
    NeighboursRecord,
    ProbeRecord,
    RetrievalRecord,
    ZeroShotRecord,
)
from sharelock_ray.evaluation.signatures.evidence import (
    CollapsedEmbeddings,
    DuplicatePair,
    Hubs,
    LanguageScore,
    MultilingualCollapse,
    Signature,
    Spread,
    TrainingDuplicates,
    WrongClassOrder,
)
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.evaluation.tasks.compositional import compositional
from sharelock_ray.evaluation.tasks.multi_label import multi_label
from sharelock_ray.evaluation.tasks.neighbours import neighbours
from sharelock_ray.evaluation.tasks.probe import linear_probe
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.features.featureset import open_features
from sharelock_ray.report.run_page import write_page
from sharelock_ray.report.summary import Summary
from sharelock_ray.runs.folder import TrainingResult

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["red circle", HOSTILE, "blue & green"]
TRAINING = TrainingResult(
    steps=120,
    stopped_early=False,
    first_loss=4.125,
    last_loss=1.25,
    best_validation_loss=1.5,
    best_step=100,
    training_pairs=12345,
    validation_pairs=67,
    lost={"vision": 1, "language": 2},
    parameters=1000,
    seconds=9,
)
PICTURE = base64.b64encode(support.jpeg(size=(20, 10))).decode()
METRICS = tuple({"step": step, "loss": 4 / step, "learning_rate": 0.1} for step in range(1, 11))
METRICS += ({"step": 10, "validation_loss": 0.5, "recall_at_1": 0.5},)


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    eye = torch.eye(3)
    labels = np.array([0, 1, 0])
    examples = [
        Example(key=f"k{i}", truth=CLASSES[labels[i]], predicted=CLASSES[i], thumbnail=PICTURE)
        for i in range(len(labels))
    ]
    scope = {"dataset": "made up", "split": "test", "model_step": 100}
    classified = [
        ZeroShotRecord(**scope, templates=("a {}",), result=result, examples=() if place else tuple(examples))
        for place, result in enumerate(zero_shot(eye, labels, eye, CLASSES))
    ]
    found = RetrievalRecord(**scope, result=retrieval(eye, eye.roll(1, 0), np.arange(3), (1, 3)))
    sets = support.write_feature_sets(tmp_path / "features", pairs=20)
    return Summary(
        title="A run & its <title>",
        note="Made-up data.",
        page=str(tmp_path / "run" / "report.html"),
        features=tuple(open_features(uri).manifest for uri in sets),
        training=TRAINING,
        metrics=METRICS,
        records=(*classified, found),
        notes=(),
        seconds={"train": 12.34},
    )


def only(summary: Summary, kind: type) -> Summary:
    """The summary with the records of one task."""
    return replace(summary, records=tuple(record for record in summary.records if isinstance(record, kind)))


def rendered(summary: Summary) -> str:
    write_page(summary)
    return Path(summary.page).read_text()


def test_fetches_nothing(summary: Summary) -> None:
    content = rendered(summary)
    for tag, attributes in Page(content).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {name}={value}"
    assert not re.search(r"@import|url\((?!#)|<\?xml-stylesheet", content)


def test_shows_every_value_of_the_table(summary: Summary) -> None:
    text = Page(rendered(summary)).text
    for name, value in summary.rows():
        assert name in text
        assert value in text
    for value in ("12,345 trained on, 67 for validation", "4.125 to 1.250 in 120 steps", "20 rows x 24 float32"):
        assert value in text
    assert "66.7% (95 % interval" in text
    assert "A run & its <title>" in text
    assert "Made-up data." in text


def test_shows_an_image_for_each_example_beside_both_texts(summary: Summary) -> None:
    page = Page(rendered(summary))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [example.truth for example in summary.records[0].examples]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    verdicts = [a["class"] for tag, a in page.tags if tag == "figcaption" and "class" in a]
    assert verdicts == ["right", "right", "wrong"]


def test_draws_training_and_validation_loss(summary: Summary) -> None:
    content = rendered(summary)
    assert content.count("<svg") == 1
    assert "<?xml" not in content
    for name in ("contrastive loss (nats)", "optimizer step", "training", "validation"):
        assert f"<!-- {name} -->" in content


def test_names_in_the_data_are_text_and_no_markup(summary: Summary) -> None:
    content = rendered(summary)
    assert "<script" not in content
    assert "&lt;script&gt;" in content
    assert HOSTILE in Page(content).text


def test_hostile_captions_of_a_run_without_classes_are_text(summary: Summary) -> None:
    example = Example(key="k", truth='"><img src=x onerror=alert(1)>', predicted=HOSTILE, thumbnail=PICTURE)
    record = summary.records[-1].model_copy(update={"examples": (example,)})
    page = Page(rendered(replace(summary, records=(record,))))
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert set(image) == {"src", "alt"}
    assert image["alt"] == example.truth
    assert HOSTILE in page.text


def test_goes_without_zero_shot(summary: Summary) -> None:
    text = Page(rendered(only(summary, RetrievalRecord))).text
    assert "Accuracy by class" not in text
    assert "zero-shot" not in text
    assert "image to text recall@1/3" in text


def test_goes_without_retrieval_and_says_why(summary: Summary) -> None:
    note = "retrieval is left out: no image of the test split has a caption"
    without = replace(only(summary, ZeroShotRecord), notes=(note,))
    text = Page(rendered(without)).text
    assert "recall@" not in text
    assert note in text
    assert ("note", note) in without.rows()
    evaluation = without.as_json()["evaluation"]
    assert {record["task"] for record in evaluation["records"]} == {"zero_shot_classification"}
    assert evaluation["notes"] == [note]


def test_each_task_has_its_rows(summary: Summary) -> None:
    eye, labels = torch.eye(3), np.arange(3)
    scope = {"dataset": "made up", "split": "test", "model_step": 100}
    two = eye[:2].expand(5, 2, 3)
    records = (
        CompositionalRecord(**scope, result=compositional(two, two)),
        CompositionalRecord(**scope, result=compositional(eye[:1].expand(5, 1, 3), eye.expand(5, 3, 3))),
        NeighboursRecord(**scope, result=neighbours(eye, labels, eye, labels, CLASSES)[0]),
        ProbeRecord(**scope, result=linear_probe(eye, labels, eye, labels, CLASSES, [1e-3])[0]),
        MultiLabelRecord(**scope, templates=("a {}",), result=multi_label(eye, np.eye(3, dtype=bool), eye, CLASSES)),
    )
    rows = replace(summary, records=records).rows()
    shown = [(name, value.replace(" (95 % interval", ";").split(";")[0]) for name, value in rows]
    expected = [
        ("compositional choice: text score of 5 samples", "100.0%"),
        ("compositional choice: image score of 5 samples", "100.0%"),
        ("compositional choice: group score of 5 samples", "100.0%"),
        ("compositional choice: text score of 5 samples", "100.0%"),
        ("k-nearest-neighbour classification among 3 classes", "100.0%"),
        ("  top-5, mean per class", "100.0%, 100.0%"),
        ("linear probe among 3 classes", "100.0%"),
        ("  top-5, mean per class", "100.0%, 100.0%"),
        ("mean average precision of 3 classes", "100.0%"),
    ]
    start = shown.index(expected[0])
    assert shown[start : start + len(expected)] == expected
    assert "chance 16.7%" in dict(rows)["compositional choice: group score of 5 samples"]


def test_says_where_compositional_choices_are_lost(summary: Summary) -> None:
    half = Estimate(value=0.5, low=0.4, high=0.6)
    loss = Loss(samples=80, chance=1 / 6, model=half, image=half, text=half, both=half, projection=half)
    limit = Ceiling(
        measure="group",
        folds=3,
        seed=0,
        attributes={HOSTILE: AttributeAccuracy(values=3, image=half, text=None)},
        total=loss,
        by_kind={HOSTILE: loss},
    )
    two = torch.eye(2).expand(5, 2, 2)
    result = compositional(two, two).model_copy(update={"ceiling": limit})
    record = CompositionalRecord(dataset="made up", split="test", model_step=100, result=result)
    summary = replace(summary, records=(record,))
    page = rendered(summary)
    assert "Where choices are lost: made up" in page
    assert page.count("50.0 (40.0 to 60.0)") == 2 * 5
    # The table of results has that of all samples.
    assert page.count("most is lost in the") == 3
    assert HOSTILE not in page
    assert ("made up group score, ceiling", loss.statement) in summary.rows()


def test_lists_classes_from_best_to_worst(summary: Summary) -> None:
    text = Page(rendered(summary)).text
    section = text[text.index("Accuracy by class") : text.index("images of the test split")]
    assert section.index(HOSTILE) < section.index("red circle")
    assert "100 %" in section
    assert "50 %" in section


def test_an_example_without_a_picture_is_shown_by_its_texts(summary: Summary) -> None:
    first = summary.records[0]
    bare = [example.model_copy(update={"thumbnail": None}) for example in first.examples]
    page = Page(rendered(replace(summary, records=(first.model_copy(update={"examples": tuple(bare)}),))))
    assert "img" not in {tag for tag, _ in page.tags}
    assert f"true: {CLASSES[1]}" in page.text


LOW, HIGH = Estimate(value=0.02, low=0.01, high=0.03), Estimate(value=0.6, low=0.5, high=0.7)
FAILURES: tuple[Signature, ...] = (
    WrongClassOrder(
        present=True,
        statement=f"With other names ({HOSTILE} for a), 60 %.",
        images=100,
        accuracy=LOW,
        permuted=HIGH,
        moved=1,
        examples={"red circle": HOSTILE},
    ),
    MultilingualCollapse(
        present=True,
        statement="1 of 1 languages are near chance.",
        dataset="d",
        measure="recall@10 from text to image",
        english=LanguageScore(images=500, value=HIGH, chance=0.02, at_chance=False),
        languages={HOSTILE: LanguageScore(images=500, value=LOW, chance=0.02, at_chance=True)},
    ),
    CollapsedEmbeddings(
        present=True,
        statement="Images are nearly equal.",
        image=Spread(rows=50, dim=16, effective_rank=1.25, uniformity=-0.125),
        text=Spread(rows=60, dim=16, effective_rank=9.5, uniformity=-3.5),
        texts="captions",
        modality_gap=0.75,
        image_hubs=Hubs(queries=60, k=10, skewness=4.5, largest=0.9),
        text_hubs=Hubs(queries=50, k=10, skewness=0.5, largest=0.3),
        faults=("images are nearly equal",),
    ),
    TrainingDuplicates(
        present=True,
        statement="2 of 9 test images are near duplicates.",
        found=2,
        compared=(9, 9),
        of=(9, 9),
        threshold=0.97,
        pairs=(
            DuplicatePair(
                test="a", training=HOSTILE, cosine=0.98765, test_thumbnail=PICTURE, training_thumbnail=PICTURE
            ),
            DuplicatePair(test="b", training="c", cosine=0.97, test_thumbnail=PICTURE),
        ),
    ),
)


class TestLanguages:
    def test_are_one_table_by_script_with_values_intervals_and_chance(self, summary: Summary) -> None:
        retrieved = only(summary, RetrievalRecord).records[0]
        codes = ("ru", HOSTILE, "de", "fr")
        records = tuple(retrieved.model_copy(update={"language": code}) for code in codes)
        content = rendered(replace(summary, records=records))
        page = Page(content)
        assert "<script" not in content
        shown = page.text.partition("Languages: made up test")[2]
        words = ("Latin", "German", "French", "Cyrillic", "Russian", "other", HOSTILE)
        places = [shown.rindex(word) for word in words]
        assert places == sorted(places)
        headers = [attributes for tag, attributes in page.tags if tag == "th" and attributes.get("scope")]
        assert [a["rowspan"] for a in headers if a["scope"] == "rowgroup"] == ["2", "1", "1"]
        assert len([a for a in headers if a["scope"] == "row"]) == len(codes)
        assert "image to text recall@3: 0 of 4 languages above chance" in shown
        assert "; chance 100.00" in shown
        assert "▲" not in shown[places[0] :]

    def test_above_chance_are_marked(self, summary: Summary) -> None:
        eye = torch.eye(40)
        found = retrieval(eye, eye, np.arange(40), (1,))
        records = tuple(
            RetrievalRecord(dataset="made up", split="test", model_step=1, language=code, result=found)
            for code in ("de", "fr")
        )
        text = Page(rendered(replace(summary, records=records))).text
        assert text.count("100.0 ▲") == 4
        assert "image to text recall@1: 2 of 2 languages above chance" in text

    @pytest.mark.parametrize(("count", "rows"), [(8, 8), (9, 2)])
    def test_that_are_many_have_a_row_for_each_measure(self, summary: Summary, count: int, rows: int) -> None:
        eye = torch.eye(40)
        found = retrieval(eye, eye, np.arange(40), (1,))
        records = tuple(
            RetrievalRecord(dataset="made up", split="test", model_step=1, language=code, result=found)
            for code in ("de", "fr", "ru", "ja", "hi", "ar", "it", "es", "nl")[:count]
        )
        shown = [name for name, _ in replace(summary, records=records).rows() if "recall@1" in name]
        assert len(shown) == rows
        if count == 9:
            assert shown[0] == "made up test: image to text recall@1 in 9 languages"

    def test_that_are_one_or_none_have_no_heat_map(self, summary: Summary) -> None:
        assert "Languages:" not in Page(rendered(summary)).text


class TestFailures:
    def test_that_are_present_are_shown_with_their_evidence(self, summary: Summary) -> None:
        shown = replace(summary, signatures=FAILURES)
        content = rendered(shown)
        page = Page(content)
        assert "<script" not in content
        for found in FAILURES:
            assert found.title.capitalize() in page.text
            assert found.statement in page.text
            assert (f"failure: {found.title}", found.statement) in shown.rows()
        for evidence in ("1.2 of 16", "-3.50", "90 % of queries", "0.75", "near chance", "cosine 0.9877", "test: b"):
            assert evidence in page.text
        pictures = [a for tag, a in page.tags if tag == "img" and a["alt"] in ("test image", "training image")]
        assert len(pictures) == 3
        assert not any(name == "no sign of" for name, _ in shown.rows())

    def test_that_are_absent_take_one_line(self, summary: Summary) -> None:
        absent = tuple(found.model_copy(update={"present": False}) for found in FAILURES)
        shown = replace(summary, signatures=absent)
        lines = [value for name, value in shown.rows() if name == "no sign of"]
        assert lines == [", ".join(found.title for found in FAILURES)]
        text = Page(rendered(shown)).text
        assert "Failure signatures" not in text
        assert lines[0] in text

    def test_that_were_not_looked_for_take_none(self, summary: Summary) -> None:
        assert not any(name.startswith(("failure", "no sign")) for name, _ in summary.rows())
        assert "Failure signatures" not in Page(rendered(summary)).text

    def test_a_program_gets_all_of_them_without_pictures(self, summary: Summary) -> None:
        some = (FAILURES[0].model_copy(update={"present": False}), FAILURES[-1])
        found = replace(summary, signatures=some).as_json()["evaluation"]["signatures"]
        assert [(each["name"], each["present"]) for each in found] == [
            ("wrong_class_order", False),
            ("training_duplicates", True),
        ]
        assert found[1]["pairs"][1] == {"test": "b", "training": "c", "cosine": 0.97}
