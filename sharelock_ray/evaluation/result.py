"""Evaluation records, as they are stored and shown: one for each task and data set. Does not import torch.

A new task adds a result and a record here, its place in `EvaluationRecord`, and its rows in `report/summary.py`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sharelock_ray.config import Config
from sharelock_ray.evaluation.statistics import Estimate


class Example(Config):
    """One image with its true text and the text that the model ranks first."""

    key: str
    truth: str
    predicted: str
    thumbnail: str | None = None
    """A small PNG in base64. None if the image could not be read, and in documents of version 1."""


class ZeroShotResult(Config):
    """Accuracies as fractions."""

    candidate_set: Literal["present", "all"]
    """Which classes are ranked: those that have images, or all named classes."""
    images: int
    candidates: int
    """Number of distinct class names that are ranked."""
    classes: int
    """Number of classes that have images."""
    chance: float
    top_1: Estimate
    top_5: Estimate
    mean_per_class: float
    per_class: dict[str, float]
    """Top-1 accuracy by name of the classes that have images; the label follows a name that several classes share."""


class RetrievalResult(Config):
    """Recall at k, by k, as fractions of the queries."""

    images: int
    texts: int
    image_to_text: dict[int, Estimate]
    text_to_image: dict[int, Estimate]


class _Record(Config):
    """Fields of every record."""

    dataset: str | None = None
    """None in documents of versions 1 and 2."""
    split: str
    model_step: int
    """Training step of the checkpoint."""
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the numbers needs."""
    examples: tuple[Example, ...] = ()


class ZeroShotRecord(_Record):
    """Zero-shot classification among one set of candidate classes."""

    title: ClassVar[str] = "zero-shot classification"
    task: Literal["zero_shot_classification"] = "zero_shot_classification"
    templates: tuple[str, ...]
    result: ZeroShotResult


class RetrievalRecord(_Record):
    """Image-text retrieval in both directions."""

    title: ClassVar[str] = "retrieval"
    task: Literal["retrieval"] = "retrieval"
    language: str | None = None
    """Language of the captions, from the table of translations; None: the captions of the split itself."""
    result: RetrievalResult


EvaluationRecord = Annotated[ZeroShotRecord | RetrievalRecord, Field(discriminator="task")]


def all_notes(records: Iterable[EvaluationRecord], notes: Iterable[str]) -> list[str]:
    """Collects the notes of records and those of the whole evaluation, each once."""
    return list(dict.fromkeys([*(note for record in records for note in record.notes), *notes]))


def upgraded(content: Any) -> Any:
    """Converts the content of `evaluation.json` of versions 1 and 2, whose one `result` held every task.

    Content of another form is returned as it is, for validation to refuse.
    """
    match content:
        case {
            "result": {
                "split": split,
                "model_step": step,
                "templates": templates,
                "retrieval": retrieval,
                "zero_shot": zero_shot,
                "examples": examples,
                **more,
            },
            **rest,
        } if more.keys() <= {"notes"}:
            records: list[dict[str, Any]] = []
            match zero_shot:
                case None:
                    pass
                case {"among_present": {**present}, "among_all": {**every}}:
                    named = [("all", every)] if present == every else [("present", present), ("all", every)]
                    records += [
                        {
                            "task": "zero_shot_classification",
                            "templates": templates,
                            "result": {"candidate_set": candidate_set, **result},
                        }
                        for candidate_set, result in named
                    ]
                case _:
                    return content
            if retrieval is not None:
                records.append({"task": "retrieval", "result": retrieval})
            records = [{"split": split, "model_step": step, **record} for record in records]
            if records:
                records[0]["examples"] = examples
            return {**rest, "records": records, "notes": more.get("notes", ())}
    return content
