"""Late-fusion ceiling: compositional choices by what linear probes find in the frozen features, without any alignment.

For each attribute a of images and texts, such as the colour of the circle, a probe (see `probe`) of either side gives
the probabilities p_a(v | image) and q_a(v | text) of its values v, of which one is "absent". An image x and a text y
then agree by

    s(x, y) = sum over a of log( sum over v of p_a(v | x) q_a(v | y) ),

the log-probability that independent draws of the two are equal. The choices are those of `compositional` by s. With the
known values of the texts in place of q, what remains is what the images lack; with those of the images in place of p,
what the texts lack. The model sees the same features: what both probes get right and the model does not is lost in the
projection. Linear probes bound nothing that is not linear, so a model may do better.

Probes are fitted to the items of other folds. A fold holds whole groups of samples that share an image or a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sharelock_ray.evaluation.result import AttributeAccuracy, Ceiling, Loss, Ties
from sharelock_ray.evaluation.statistics import Estimate, compare, proportion
from sharelock_ray.evaluation.tasks.compositional import Choices, chance, judged
from sharelock_ray.evaluation.tasks.probe import fit_probes

FOLDS = 3
PENALTIES = (1e-3, 1e-4, 1e-5)
"""Those of `probe.PENALTIES` that thousands of items need."""


@dataclass(frozen=True)
class Side:
    """The images or the texts of samples.

    Args:
        features: (M, D) of the different items.
        of_sample: (N, K) item of each sample.
        values: (M,) by attribute, the value of each item: 0 if it is absent.
    """

    features: torch.Tensor
    of_sample: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fusion:
    """What each of N samples did, and the accuracies of the probes."""

    sides: tuple[int, int]
    """Numbers of images and texts of a sample."""
    told_apart: np.ndarray
    """(N,) bool: whether the known values decide the choice. The others count nowhere."""
    image: Choices
    text: Choices
    both: Choices
    attributes: dict[str, AttributeAccuracy]


def fuse(
    image: Side, text: Side, values: Mapping[str, int], ties: Ties = "strict", folds: int = FOLDS, seed: int = 0
) -> Fusion:
    """Makes the choices of samples by probes.

    Args:
        values: number of values of each attribute, without "absent".
        seed: decides the folds, and what the probes hold out to choose their penalty.

    Raises:
        ValueError: there are fewer independent groups of samples than folds.
    """
    group = groups_of(image.of_sample, text.of_sample)
    groups = int(group.max()) + 1
    if groups < folds:
        raise ValueError(f"{groups} groups of samples without common images and texts cannot make {folds} folds")
    fold = np.random.default_rng(seed).permutation(groups)[group] % folds
    shape = len(group), image.of_sample.shape[1], text.of_sample.shape[1]
    known, by_image, by_text, by_both = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
    accuracies = {}
    read = zip(*(_log_probabilities(side, values, fold, folds, seed) for side in (image, text)), strict=True)
    for (attribute, count), (p, q) in zip(values.items(), read, strict=True):
        # (N, I, 1, V) and (N, 1, T, V); known values are (N, I, 1) and (N, 1, T).
        x, y = (torch.from_numpy(side.values[attribute][side.of_sample]) for side in (image, text))
        accuracies[attribute] = AttributeAccuracy(
            values=count, image=_accuracy(p, x, group), text=_accuracy(q, y, group)
        )
        p, q, x, y = p[:, :, None], q[:, None], x[:, :, None], y[:, None]
        known -= (x != y).double()
        by_image += p.expand(*shape, -1).gather(3, y.expand(shape)[..., None])[..., 0]
        by_text += q.expand(*shape, -1).gather(3, x.expand(shape)[..., None])[..., 0]
        by_both += torch.logsumexp(p + q, 3)
    return Fusion(
        sides=shape[1:],
        told_apart=judged(known).strictest[1],
        image=judged(by_image, ties),
        text=judged(by_text, ties),
        both=judged(by_both, ties),
        attributes=accuracies,
    )


def ceiling(found: Fusion, model: Choices, kinds: Sequence[str], of_images: np.ndarray) -> Ceiling:
    """Compares the choices by probes with those of a model, on the samples that attributes tell apart.

    Args:
        kinds: N kinds of change; "" has no line of its own.
        of_images: (N,) integers from 0: samples with the same one are not independent.

    Raises:
        ValueError: the attributes tell no sample apart.
    """
    if not found.told_apart.any():
        raise ValueError("the attributes tell no image or text of a sample from another")
    measure, hits = model.strictest

    def loss(some: np.ndarray) -> Loss:
        group = np.unique(of_images[some], return_inverse=True)[1]
        image, text, both = (each.strictest[1][some] for each in (found.image, found.text, found.both))
        return Loss(
            samples=len(some),
            chance=getattr(chance(*found.sides), measure),
            model=proportion(hits[some], group),
            image=proportion(image, group),
            text=proportion(text, group),
            both=proportion(both, group),
            projection=compare(hits[some], both, group).difference,
        )

    every, kind = np.flatnonzero(found.told_apart), np.array(kinds)
    return Ceiling(
        measure=measure,
        folds=FOLDS,
        seed=0,
        attributes=found.attributes,
        total=loss(every),
        by_kind={name: loss(every[kind[every] == name]) for name in dict.fromkeys(kind[every].tolist()) if name},
    )


def groups_of(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(N,) integers from 0 of samples: those with a common item, also over others, have the same.

    Args:
        images: (N, I) integers from 0.
        texts: (N, T) integers from 0.
    """
    items = np.concatenate([images, texts + images.max() + 1], 1)
    first = np.repeat(items[:, :1], items.shape[1], 1)
    ones, size = np.ones(items.size, bool), items.max() + 1
    graph = coo_matrix((ones, (first.reshape(-1), items.reshape(-1))), (size, size))
    component = connected_components(graph, directed=False)[1]
    return np.unique(component[items[:, 0]], return_inverse=True)[1]


def _log_probabilities(
    side: Side, values: Mapping[str, int], fold: np.ndarray, folds: int, seed: int
) -> list[torch.Tensor]:
    """(N, K, V) log-probabilities of the values of each attribute, by probes of the items of other folds."""
    labels = np.stack([side.values[attribute] for attribute in values], 1)
    of_item = np.full(len(labels), -1)
    of_item[side.of_sample] = fold[:, None]
    classes = [1 + count for count in values.values()]
    found = [torch.empty(len(labels), count, dtype=torch.float64) for count in classes]
    for held_out in range(folds):
        others, rows = (torch.from_numpy(np.flatnonzero(some)) for some in (of_item != held_out, of_item == held_out))
        probes = fit_probes(side.features[others], labels[others.numpy()], classes, PENALTIES, seed)
        for of_attribute, probe in zip(found, probes, strict=True):
            of_attribute[rows] = torch.log_softmax(probe.logits(side.features[rows]).double(), 1)
    return [of_attribute[torch.from_numpy(side.of_sample)] for of_attribute in found]


def _accuracy(log_probabilities: torch.Tensor, values: torch.Tensor, group: np.ndarray) -> Estimate | None:
    """Share of the items with the attribute whose value is the most probable."""
    present = (values > 0).numpy()
    if not present.any():
        return None
    right = (log_probabilities.argmax(2) == values).numpy()[present]
    of_item = np.broadcast_to(group[:, None], present.shape)[present]
    return proportion(right, np.unique(of_item, return_inverse=True)[1])
