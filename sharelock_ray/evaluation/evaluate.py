"""Everything that is measured on one split of features, as one result."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.alignment.model import AlignedModel
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.result import Evaluation, Example
from sharelock_ray.evaluation.retrieval import retrieval
from sharelock_ray.evaluation.zero_shot import doubles, zero_shot
from sharelock_ray.features.featureset import FeatureSet, Pairs

_EXAMPLES = 24
# Of the names that several classes have, so many are named.
_NAMED = 5
_NO_LABELS = np.empty(0, np.int64), np.empty(0, np.int64)


def evaluate(
    model: AlignedModel,
    pairs: Pairs,
    split: str,
    class_names: Sequence[str] | None,
    templates: Sequence[str],
    recall_at: Sequence[int],
) -> Evaluation:
    """Scores retrieval on `pairs`, and zero-shot classification on the labelled images of their vision set.

    What the split has nothing for is left out, and noted. Only rows that are scored are projected.

    Args:
        class_names: by label; None where zero-shot classification is not asked for.

    Raises:
        RequestError: other encoders than the model's made the features, a label has no name, or the split has neither
            images with captions nor labelled images.
    """
    rows, labels = labelled(pairs.vision, len(class_names)) if class_names else _NO_LABELS
    notes = [] if len(pairs) else [f"retrieval is left out: no image of the {split} split has a caption"]
    if class_names is not None and not len(rows):
        why = f"no image of the {split} split has a label" if class_names else "`data.classes` names no class"
        notes.append(f"zero-shot classification is left out: {why}")
    if not len(pairs) and not len(rows):
        raise RequestError(f"there is nothing to evaluate: {'; '.join(notes)}")
    scored = np.union1d(pairs.vision_rows, rows)
    images = model.project(pairs.vision, scored)
    found = classified = None
    examples: list[Example] = []
    if len(pairs):
        image = images[np.searchsorted(scored, pairs.vision_rows)]
        text = model.project(pairs.language, pairs.caption_rows)
        owner = np.repeat(np.arange(len(pairs)), np.diff(pairs.caption_start))
        found = retrieval(image, text, owner, recall_at)
        examples = _nearest_texts(pairs, image, text)
    if class_names and len(rows):
        image, prototypes = images[np.searchsorted(scored, rows)], model.prototypes(class_names, templates)
        classified = zero_shot(image, labels, prototypes, class_names)
        examples = _nearest_classes(pairs.vision, rows, labels, image, prototypes, class_names)
        notes += _doubles_noted(class_names)
    return Evaluation(
        split=split,
        model_step=model.checkpoint.position.step,
        templates=tuple(templates),
        retrieval=found,
        zero_shot=classified,
        examples=tuple(examples),
        notes=tuple(notes),
    )


def _doubles_noted(class_names: Sequence[str]) -> list[str]:
    """A line that names the names of several classes, the first ones, where there are any."""
    found = [f"{name} (labels {', '.join(map(str, labels))})" for name, labels in doubles(class_names).items()]
    if not found:
        return []
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return [f"one name for several classes, any of which counts as right: {', '.join(found[:_NAMED])}{more}"]


def _nearest_classes(
    vision: FeatureSet,
    rows: np.ndarray,
    labels: np.ndarray,
    image: torch.Tensor,
    prototypes: torch.Tensor,
    class_names: Sequence[str],
) -> list[Example]:
    """Labelled images with their own class, and the nearest of those that have images."""
    present = np.unique(labels)
    some = _spread(len(rows))
    predicted = present[(image[some] @ prototypes[present].T).argmax(1).numpy()]
    keys = vision.table["key"].take(rows[some]).to_pylist()
    return [
        Example(key=key, truth=class_names[label], predicted=class_names[near])
        for key, label, near in zip(keys, labels[some], predicted, strict=True)
    ]


def labelled(vision: FeatureSet, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(M,) rows of a vision set that have a label, and (M,) their labels.

    Raises:
        RequestError: a label is none of `classes`.
    """
    labels = vision.labels
    rows = np.flatnonzero(~np.isnan(labels))
    truth = labels[rows].astype(np.int64)
    if len(truth) and (truth.min() < 0 or truth.max() >= classes):
        raise RequestError(
            f"labels go from {truth.min()} to {truth.max()}, but {classes} classes are named: "
            f"check `data.classes` (line n names label n, from 0)"
        )
    return rows, truth


def _nearest_texts(pairs: Pairs, image: torch.Tensor, text: torch.Tensor) -> list[Example]:
    """Images with their own first caption, and the caption that the model finds nearest.

    Args:
        image: (N, D) of the pairs.
        text: (M, D) of their captions.
    """
    some = _spread(len(pairs))
    keys = pairs.vision.table["key"].take(pairs.vision_rows[some]).to_pylist()
    captions = pairs.language.table["text"]
    own = captions.take(pairs.caption_rows[pairs.caption_start[some]]).to_pylist()
    nearest = (image[some] @ text.T).argmax(1).numpy()
    found = captions.take(pairs.caption_rows[nearest]).to_pylist()
    return [Example(key=k, truth=t, predicted=p) for k, t, p in zip(keys, own, found, strict=True)]


def _spread(count: int) -> np.ndarray:
    """At most `_EXAMPLES` positions, evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, _EXAMPLES)).round().astype(np.int64))
