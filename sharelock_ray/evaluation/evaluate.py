"""Everything that is measured on one split of features, as one result."""

from collections.abc import Sequence

import numpy as np
import torch

from sharelock_ray.alignment.model import AlignedModel
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.result import Evaluation, Example, ZeroShot
from sharelock_ray.evaluation.retrieval import retrieval
from sharelock_ray.evaluation.zero_shot import zero_shot
from sharelock_ray.features.featureset import FeatureSet, Pairs

_EXAMPLES = 24


def evaluate(
    model: AlignedModel,
    pairs: Pairs,
    split: str,
    class_names: Sequence[str] | None,
    templates: Sequence[str],
    recall_at: Sequence[int],
) -> Evaluation:
    """Scores retrieval on `pairs`, and zero-shot classification on the labelled images of their vision set.

    Args:
        class_names: by label; None leaves zero-shot classification out.

    Raises:
        RequestError: other encoders than the model's made the features.
    """
    image, text = model.project(pairs.vision), model.project(pairs.language)
    found = retrieval(
        image[torch.from_numpy(pairs.vision_rows)],
        text[torch.from_numpy(pairs.caption_rows)],
        np.repeat(np.arange(len(pairs)), np.diff(pairs.caption_start)),
        recall_at,
    )
    classified, examples = _classify(model, pairs, image, class_names or (), templates)
    return Evaluation(
        split=split,
        model_step=model.checkpoint.position.step,
        templates=tuple(templates),
        retrieval=found,
        zero_shot=classified,
        examples=tuple(examples or _nearest_texts(pairs, image, text)),
    )


def _classify(
    model: AlignedModel, pairs: Pairs, image: torch.Tensor, class_names: Sequence[str], templates: Sequence[str]
) -> tuple[ZeroShot | None, list[Example]]:
    if not class_names:
        return None, []
    rows, truth = labelled(pairs.vision, len(class_names))
    if not len(rows):
        return None, []
    images = image[torch.from_numpy(rows)]
    prototypes = model.prototypes(class_names, templates)
    present = np.unique(truth)
    among_all, _ = zero_shot(images, truth, prototypes, class_names)
    among_present, predicted = zero_shot(
        images, np.searchsorted(present, truth), prototypes[present], [class_names[c] for c in present]
    )
    keys = pairs.vision.keys[rows]
    examples = [
        Example(key=keys[i], truth=class_names[truth[i]], predicted=class_names[present[predicted[i]]])
        for i in _spread(len(rows))
    ]
    return ZeroShot(among_present=among_present, among_all=among_all), examples


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
    """Images with their own first caption, and the caption that the model finds nearest."""
    texts = pairs.language.columns["text"]
    gallery = text[torch.from_numpy(pairs.caption_rows)]
    return [
        Example(
            key=pairs.keys[i],
            truth=texts[pairs.caption_rows[pairs.caption_start[i]]],
            predicted=texts[pairs.caption_rows[int((gallery @ image[pairs.vision_rows[i]]).argmax())]],
        )
        for i in _spread(len(pairs))
    ]


def _spread(count: int) -> list[int]:
    """At most `_EXAMPLES` positions, evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, _EXAMPLES)).round().astype(int)).tolist()
