"""The ceiling of compositional choices, from feature sets and a table of attributes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from sharelock_ray.evaluation.attributes import Attributes, codes
from sharelock_ray.evaluation.result import Ceiling, Ties
from sharelock_ray.evaluation.tasks.ceiling import Side, ceiling, fuse
from sharelock_ray.evaluation.tasks.compositional import Choices
from sharelock_ray.features.featureset import FeatureSet


def ceiling_of(
    images: tuple[FeatureSet, np.ndarray],
    texts: tuple[FeatureSet, np.ndarray],
    captions: Sequence[tuple[str, ...]],
    kinds: Sequence[str],
    model: Choices,
    of_images: np.ndarray,
    known: Attributes,
    ties: Ties,
) -> tuple[Ceiling | None, dict[str, pa.Array], str | None]:
    """Computes the ceiling of the examples whose attributes are known.

    Args:
        images: the vision set, and (N, I) rows of the images of N examples.
        texts: the language set, and (N, T) rows of their captions.
        captions: N times T captions.
        kinds: N kinds of change.
        model: what the model chose.
        of_images: (N,) integers from 0; examples of the same images have the same.

    Returns:
        The ceiling, or None; (N,) columns of whether the choice by probes is right, null where attributes are unknown
        or do not decide it; and a note about examples that are left out, or None.
    """
    keys = images[0].keys[images[1]]
    annotated = np.array(
        [
            all(key in known.images for key in of) and all(text in known.texts for text in said)
            for of, said in zip(keys.tolist(), captions, strict=True)
        ]
    )
    some = np.flatnonzero(annotated)
    if not len(some):
        return None, {}, "no example has attributes of its images and captions: check the keys and texts of the table"
    values = known.values()

    def side(features: FeatureSet, rows: np.ndarray, names: np.ndarray, table: dict[str, dict[str, str]]) -> Side:
        # Examples may share images and captions.
        different, first, place = np.unique(names[some], return_index=True, return_inverse=True)
        items = [table[name] for name in different.tolist()]
        return Side(
            features.embeddings[torch.from_numpy(rows[some].reshape(-1)[first])],
            place.reshape(rows[some].shape),
            {attribute: codes(items, attribute, of) for attribute, of in values.items()},
        )

    image, text = side(*images, keys, known.images), side(*texts, np.array(captions), known.texts)
    try:
        found = fuse(image, text, {attribute: len(of) for attribute, of in values.items()}, ties)
        limit = ceiling(found, model.of(some), [kinds[place] for place in some.tolist()], of_images[some])
    except ValueError as error:
        return None, {}, f"there is no ceiling of the frozen features: {error}"
    columns = {}
    for name in ("image", "text", "both"):
        right = np.full(len(captions), None)
        right[some[found.told_apart]] = getattr(found, name).strictest[1][found.told_apart]
        columns[f"{name}_probes"] = pa.array(right.tolist(), pa.bool_())
    left = len(captions) - int(found.told_apart.sum())
    note = f"attributes are unknown or alike in {left:,} of {len(captions):,} examples, which have no ceiling"
    return limit, columns, note if left else None
