"""The numbers that trials of a study are compared by: the same questions to each, whatever its batch or its loss."""

from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.alignment.model import AlignedModel
from sharelock_ray.evaluation.evaluate import labelled
from sharelock_ray.evaluation.retrieval import retrieval
from sharelock_ray.evaluation.zero_shot import zero_shot
from sharelock_ray.features.featureset import FeatureSet, Pairs

GALLERY = 5000
"""Validation pairs that recall is measured among, at most: the first ones by key."""


@dataclass(frozen=True)
class Classes:
    """Images of a test split, and what names their classes.

    `prompts` is (C, T, D_language): T embedded prompts of each of C classes.
    """

    images: FeatureSet
    prompts: torch.Tensor


def recall_at_1(model: AlignedModel, validation: Pairs, gallery: int = GALLERY) -> float:
    """Mean of both directions' recall at 1 among at most `gallery` validation pairs, each with its first caption."""
    rows = torch.from_numpy(validation.vision_rows[:gallery])
    captions = torch.from_numpy(validation.caption_rows[validation.caption_start[:-1]][:gallery])
    image = model.project_image(validation.vision.embeddings[rows])
    text = model.project_text(validation.language.embeddings[captions])
    found = retrieval(image, text, np.arange(len(image)), (1,))
    return (found.image_to_text[1].value + found.text_to_image[1].value) / 2


def zero_shot_accuracy(model: AlignedModel, classes: Classes) -> float:
    """Top-1 accuracy of zero-shot classification among the classes that have images.

    Raises:
        RequestError: labels go beyond the named classes, or another encoder made the features.
    """
    count, templates, width = classes.prompts.shape
    rows, truth = labelled(classes.images, count)
    present, own = np.unique(truth, return_inverse=True)
    embedded = model.project_text(classes.prompts[present].reshape(-1, width)).view(len(present), templates, -1)
    prototypes = torch.nn.functional.normalize(embedded.mean(1), dim=-1)
    images = model.project(classes.images)[torch.from_numpy(rows)]
    return zero_shot(images, own, prototypes, [str(c) for c in present])[0].top_1.value
