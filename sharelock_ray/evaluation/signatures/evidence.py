"""Signatures as they are stored and shown. Does not import torch.

A new signature adds a class here, and its place in `Signature`.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from sharelock_ray.config import Config
from sharelock_ray.evaluation.statistics import Estimate

_NEAR = 0.1
"""Share of the way from chance to a reference that still counts as chance."""


class _Signature(Config):
    """Fields of every signature; the other fields are its evidence."""

    title: ClassVar[str]

    present: bool
    statement: str
    """One sentence with the numbers, whether the signature is present or not."""


class MemorisedClasses(_Signature):
    """Classes that training captions name are recognised, others are not."""

    title: ClassVar[str] = "memorised training classes"
    name: Literal["memorised_classes"] = "memorised_classes"
    seen_classes: int
    unseen_classes: int
    seen: Estimate
    """Top-1 accuracy of images of seen classes, among the seen classes with images."""
    seen_chance: float
    unseen: Estimate
    """Top-1 accuracy of images of unseen classes, among the unseen classes with images."""
    unseen_chance: float


class WrongClassOrder(_Signature):
    """Another assignment of class names to labels fits the images far better."""

    title: ClassVar[str] = "wrong class order"
    name: Literal["wrong_class_order"] = "wrong_class_order"
    images: int
    """Number of images in the accuracies. The assignment was chosen on others."""
    accuracy: Estimate
    permuted: Estimate
    """Accuracy under the best assignment of names to labels."""
    moved: int
    """Number of classes with another name under it."""
    examples: dict[str, str]
    """The name that fits, by the given name, of the first few of them."""


class LanguageScore(Config):
    """A score in one language."""

    images: int
    value: Estimate
    chance: float
    at_chance: bool = False


class MultilingualCollapse(_Signature):
    """Some languages are near chance where English is not."""

    title: ClassVar[str] = "multilingual collapse"
    name: Literal["multilingual_collapse"] = "multilingual_collapse"
    dataset: str | None
    measure: str
    """Such as "recall@10 from text to image"."""
    english: LanguageScore
    languages: dict[str, LanguageScore]


class RandomCompositionality(_Signature):
    """Texts or images that differ in one respect are not told apart."""

    title: ClassVar[str] = "near-random compositionality"
    name: Literal["random_compositionality"] = "random_compositionality"
    dataset: str | None
    samples: int
    scores: dict[str, Estimate]
    chance: dict[str, float]


class Spread(Config):
    """How embeddings of one modality fill their space."""

    rows: int
    """Number of embeddings that were measured."""
    dim: int
    effective_rank: float
    uniformity: float


class Hubs(Config):
    """How often the embeddings of one modality are among the k nearest to queries of the other."""

    queries: int
    k: int
    skewness: float
    largest: float
    """Share of the queries that have the most frequent item among their k nearest."""


class CollapsedEmbeddings(_Signature):
    """Projected embeddings that take up little of their space."""

    title: ClassVar[str] = "collapsed embeddings"
    name: Literal["collapsed_embeddings"] = "collapsed_embeddings"
    image: Spread
    text: Spread
    texts: Literal["captions", "classes"]
    modality_gap: float
    image_hubs: Hubs
    text_hubs: Hubs
    faults: tuple[str, ...]


class DuplicatePair(Config):
    """A test image and the training image that is nearest to it."""

    test: str
    """Key of the test image."""
    training: str
    cosine: float
    test_thumbnail: str | None = None
    """A small PNG in base64; None if the image could not be read."""
    training_thumbnail: str | None = None


class TrainingDuplicates(_Signature):
    """Test images that are also training images."""

    title: ClassVar[str] = "test images in the training set"
    name: Literal["training_duplicates"] = "training_duplicates"
    found: int
    """Number of compared test images with a near duplicate."""
    compared: tuple[int, int]
    """Numbers of test and training images that were compared."""
    of: tuple[int, int]
    """Numbers of test and training images."""
    threshold: float
    pairs: tuple[DuplicatePair, ...]
    """The nearest ones."""


Signature = Annotated[
    MemorisedClasses
    | WrongClassOrder
    | MultilingualCollapse
    | RandomCompositionality
    | CollapsedEmbeddings
    | TrainingDuplicates,
    Field(discriminator="name"),
]


def at_chance(score: Estimate, chance: float, reference: float) -> bool:
    """Tells whether a score is near chance, and known to be much nearer to it than to a reference.

    Its interval begins within a tenth of the way from chance to the reference, and ends within half of it: a score of
    few items, whose interval is wide, is not said to be near it.
    """
    way = reference - chance
    return score.low <= chance + _NEAR * way and score.high < chance + way / 2


def above_chance(score: Estimate, chance: float) -> bool:
    """Tells whether a score is significantly above chance, and at least a tenth of the way from it to 1."""
    return score.low > chance and score.value >= chance + _NEAR * (1 - chance)


def percent(value: float | Estimate) -> str:
    """A share in a statement."""
    return f"{100 * (value.value if isinstance(value, Estimate) else value):.1f} %"


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def sample(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, drawn at random, always the same ones, in ascending order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))
