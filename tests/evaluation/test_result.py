"""Evaluations that earlier versions stored open as they were."""

import json

from sharelock_ray.evaluation.result import Evaluation

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
STORED = {
    "split": "test",
    "model_step": 120,
    "templates": ["a photo of a {}.", "a {}."],
    "retrieval": {"images": 320, "texts": 320, "image_to_text": RECALL, "text_to_image": RECALL},
    "zero_shot": {"among_present": SCORED, "among_all": SCORED},
    "examples": [{"key": "00000/000000", "truth": "red circle", "predicted": "red circle"}],
}


def test_what_was_stored_before_notes_and_thumbnails_opens() -> None:
    found = Evaluation.model_validate_json(json.dumps(STORED))
    assert found.notes == ()
    assert found.retrieval.image_to_text[1].value == 0.21875
    assert found.zero_shot.among_present.per_class == {"red circle": 0.9, "green heart": 0.95}
    kept = json.loads(found.model_dump_json(exclude_defaults=True))
    assert kept == STORED


def test_a_run_without_classes_opens() -> None:
    assert Evaluation.model_validate_json(json.dumps(STORED | {"zero_shot": None})).zero_shot is None
