"""Evaluations that earlier versions stored become lists of records, and lose nothing."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sharelock_ray.evaluation.result import (
    CompositionalRecord,
    EvaluationRecord,
    GeneralisedRecord,
    MultiLabelRecord,
    NeighboursRecord,
    ProbeRecord,
    RetrievalRecord,
    ZeroShotRecord,
    all_notes,
    upgraded,
)
from sharelock_ray.evaluation.tasks.compositional import compositional
from sharelock_ray.evaluation.tasks.generalised import Sides, decisions_of, generalised
from sharelock_ray.evaluation.tasks.multi_label import multi_label
from sharelock_ray.evaluation.tasks.neighbours import neighbours
from sharelock_ray.evaluation.tasks.probe import linear_probe
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.workflows.evaluate import Evaluation

RECALL = {"1": {"value": 0.21875, "low": 0.171875, "high": 0.265625}, "5": {"value": 0.59, "low": 0.53, "high": 0.64}}
SCORED = {
    "images": 320,
    "candidates": 2,
    "classes": 2,
    "chance": 0.5,
    "top_1": {"value": 0.990625, "low": 0.978125, "high": 1.0},
    "top_5": {"value": 1.0, "low": 1.0, "high": 1.0},
    "mean_per_class": 0.925,
    "per_class": {"red circle": 0.9, "green heart": 0.95},
}
AMONG_ALL = SCORED | {"candidates": 64, "chance": 1 / 64}
RETRIEVAL = {"images": 320, "texts": 320, "image_to_text": RECALL, "text_to_image": RECALL}
EXAMPLES = [{"key": "00000/000000", "truth": "red circle", "predicted": "red circle"}]
REQUEST = {"model": "m", "features": ["f"], "evaluation": {}}


def stored(**changes: Any) -> dict[str, Any]:
    """`evaluation.json` of version 1."""
    result = {
        "split": "test",
        "model_step": 120,
        "templates": ["a photo of a {}.", "a {}."],
        "retrieval": RETRIEVAL,
        "zero_shot": {"among_present": SCORED, "among_all": AMONG_ALL},
        "examples": EXAMPLES,
    }
    return {"request": REQUEST, "result": result | changes}


def test_every_task_of_an_earlier_version_is_a_record() -> None:
    present, every, retrieval = Evaluation.model_validate(stored()).records
    assert (present.task, present.result.candidate_set, present.result.candidates) == (every.task, "present", 2)
    assert (every.result.candidate_set, every.result.candidates) == ("all", 64)
    # What later versions added is at its default.
    assert present.result.model_dump(mode="json", exclude={"candidate_set"}, exclude_defaults=True) == SCORED
    assert every.result.model_dump(mode="json", exclude={"candidate_set"}, exclude_defaults=True) == AMONG_ALL
    assert retrieval.result.model_dump(mode="json", exclude_defaults=True) == RETRIEVAL
    assert (present.result.ties, present.result.tied, retrieval.result.tied_images) == ("strict", None, None)
    for record in (present, every, retrieval):
        assert (record.dataset, record.split, record.model_step) == (None, "test", 120)
    assert present.templates == every.templates == ("a photo of a {}.", "a {}.")
    assert [len(record.examples) for record in (present, every, retrieval)] == [1, 0, 0]


def test_one_record_is_made_where_all_classes_had_images() -> None:
    found = Evaluation.model_validate(stored(zero_shot={"among_present": SCORED, "among_all": SCORED}))
    assert [record.result.candidate_set for record in found.records[:-1]] == ["all"]


def test_examples_of_a_run_without_classes_belong_to_retrieval() -> None:
    (record,) = Evaluation.model_validate(stored(zero_shot=None)).records
    assert (record.task, record.examples[0].key) == ("retrieval", "00000/000000")


def test_notes_of_version_2_are_kept_and_shown_once() -> None:
    found = Evaluation.model_validate({"schema_version": 2} | stored(notes=["a note"], retrieval=None))
    assert found.notes == ("a note",)
    records = [record.model_copy(update={"notes": ("one", "two")}) for record in found.records]
    assert all_notes(records, ["two", "three"]) == ["one", "two", "three"]


SIDES = Sides(seen=np.array([0]), unseen=np.array([1, 2]))


def every_record() -> list[EvaluationRecord]:
    """A record of each task."""
    eye, labels, names = torch.eye(3), np.arange(3), ["circle", "square", "star"]
    scope: dict[str, Any] = {"dataset": "shapes", "split": "test", "model_step": 120}
    pairs = eye[:2].expand(3, 2, 3)
    return [
        ZeroShotRecord(**scope, templates=("{}",), result=zero_shot(eye, labels, eye, names)[0]),
        GeneralisedRecord(
            **scope,
            templates=("{}",),
            concepts="1a2b3c4d",
            result=generalised(decisions_of(eye.repeat(3, 1), np.tile(labels, 3), SIDES), SIDES, names, 0.1),
        ),
        RetrievalRecord(**scope, result=retrieval(eye, eye, labels)),
        CompositionalRecord(**scope, result=compositional(pairs, pairs, ["order", "order", "object"])),
        NeighboursRecord(**scope, result=neighbours(eye, labels, eye, labels, names)[0]),
        ProbeRecord(**scope, result=linear_probe(eye, labels, eye, labels, names)[0]),
        MultiLabelRecord(**scope, templates=("{}",), result=multi_label(eye, np.eye(3, dtype=bool), eye, names)),
    ]


def test_every_task_is_stored_and_opens_as_it_was() -> None:
    records = every_record()
    found = Evaluation.model_validate({"request": REQUEST, "records": records})
    opened = Evaluation.model_validate_json(json.dumps(found.content()))
    assert opened.records == tuple(records)
    assert len({(record.task, record.title) for record in opened.records}) == len(records)
    for record in opened.records:
        assert record.result.images in (3, 6)
        assert record.result.ties == "strict"


def test_what_is_stored_opens_as_it_was() -> None:
    found = Evaluation.model_validate(stored())
    assert found.content()["schema_version"] == 9
    assert Evaluation.model_validate(found.content()) == found


@pytest.mark.parametrize(
    "damaged", [stored(zero_shot={"among_present": SCORED}), stored(more=1), {"result": 1}, {"result": {}}, [], "text"]
)
def test_another_form_is_left_for_validation_to_refuse(damaged: Any) -> None:
    assert upgraded(damaged) == damaged
    with pytest.raises(ValidationError):
        Evaluation.model_validate(damaged)


def test_signatures_of_earlier_versions_follow_from_their_records() -> None:
    found = Evaluation.model_validate(stored())
    (own,) = [record for record in found.records if record.task == "retrieval"]
    scores = {10: {"value": 0.5, "low": 0.4, "high": 0.6}}, {10: {"value": 0.01, "low": 0.0, "high": 0.02}}
    english, hindi = (
        own.model_dump() | {"language": name, "result": own.result.model_dump() | {"images": 500, "text_to_image": of}}
        for name, of in zip(("en", "hi"), scores, strict=True)
    )
    old = {"schema_version": 4, "request": found.request, "records": (english, hindi)}
    (signature,) = Evaluation.model_validate(old).all_signatures
    assert (signature.name, signature.present) == ("multilingual_collapse", True)
