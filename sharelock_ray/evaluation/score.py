"""The numbers that trials of a study are compared by: the same questions to each, whatever its batch or its loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.evaluate import labelled
from sharelock_ray.evaluation.ranks import ranks
from sharelock_ray.evaluation.retrieval import retrieval
from sharelock_ray.evaluation.zero_shot import targets
from sharelock_ray.features.featureset import FeatureSet, Pairs
from sharelock_ray.runs.model import AlignedModel

GALLERY = 5000
"""Validation pairs that recall is measured among, at most: the first ones by key."""


@dataclass(frozen=True)
class Classes:
    """Images of a test split, and what names their classes.

    `prompts` is (C, T, D_language): T embedded prompts of each of C classes, whose names are `names`.
    """

    images: FeatureSet
    prompts: torch.Tensor
    names: Sequence[str]


def recall_at_1(model: AlignedModel, validation: Pairs, gallery: int = GALLERY) -> float:
    """Mean of both directions' recall at 1 among at most `gallery` validation pairs, each with its first caption."""
    rows = torch.from_numpy(validation.vision_rows[:gallery])
    captions = torch.from_numpy(validation.caption_rows[validation.caption_start[:-1]][:gallery])
    image = model.project_image(validation.vision.embeddings[rows])
    text = model.project_text(validation.language.embeddings[captions])
    found = retrieval(image, text, np.arange(len(image)), (1,))
    return (found.image_to_text[1].value + found.text_to_image[1].value) / 2


def required_labels(images: FeatureSet, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """As `labelled`, where there must be some.

    Raises:
        RequestError: no image has a label, or one has a label beyond `classes`.
    """
    rows, labels = labelled(images, classes)
    if not len(rows):
        raise RequestError(f"no image of {images.uri} has a label: give labels, or take `data.classes` away")
    return rows, labels


def zero_shot_accuracy(model: AlignedModel, classes: Classes) -> float:
    """Top-1 accuracy of zero-shot classification among the classes that have images, as `zero_shot` counts it.

    Raises:
        RequestError: see `required_labels`; or another encoder made the features.
    """
    count, templates, width = classes.prompts.shape
    rows, labels = required_labels(classes.images, count)
    first, of_class = targets(classes.names)
    present, own = np.unique(of_class[labels], return_inverse=True)
    embedded = model.project_text(classes.prompts[first[present]].reshape(-1, width)).view(len(present), templates, -1)
    prototypes = torch.nn.functional.normalize(embedded.mean(1), dim=-1)
    _, rank = ranks(prototypes, model.project(classes.images, rows), own)
    return float(np.mean(rank == 0))
