"""What comparisons by embeddings found, as it is stored and shown. Does not import torch."""

from typing import Any, ClassVar

from sharelock_ray import storage
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.config import Config
from sharelock_ray.documents import Document, read_document
from sharelock_ray.evaluation.statistics import Estimate

NAME = "{}"
POSITIVE = 7.0
"""Least score, of 0 to 10, of a pair that counts as one concept: SimLex-999's synonyms."""
DIGITS = 4
"""Decimals of stored cosines, which are then the same on any machine."""
QUANTILE = 0.05
"""Share of classes that are less like themselves than twins are like each other."""
AUTO = "auto"


class CurvePoint(Config):
    """Precision and recall of the pairs whose cosine is at least a threshold."""

    threshold: float
    precision: float
    recall: float


class Threshold(Config):
    """The cosine from which names of one encoder are similar, and how it was chosen.

    Args:
        encoder: folder name of the encoder's feature sets.
        template: text with `{}` for the name.
        pairs: name of the file of labelled pairs.
        positive: least score of a pair that counts as one concept.
        positives: number of such pairs, of `labelled`.
        rule: how the threshold was chosen.
        precision: share of pairs of one concept among those at or above the threshold.
        recall: share of the pairs of one concept that are at or above it.
        average_precision: area under the curve; that of a random order is `positives / labelled`.
        curve: the point of each recall with the highest threshold, from high thresholds to low ones.
    """

    encoder: str
    template: str = NAME
    pairs: str
    pairs_sha256: str
    positive: float
    labelled: int
    positives: int
    rule: str
    threshold: float
    precision: Estimate
    recall: Estimate
    f1: float
    average_precision: float
    curve: tuple[CurvePoint, ...]


class SimilarityThreshold(Document):
    """A stored threshold.

    Args:
        spec: the settings of the encoder, which embed names anew.
    """

    schema_version: ClassVar[int] = 1

    chosen: Threshold
    spec: dict[str, Any]


class TwinImage(Config):
    """An image with a near duplicate on the other side."""

    key: str
    evidence: Evidence


class Duplicates(Config):
    """Images of one side with near duplicates on the other.

    Args:
        threshold: least cosine of near duplicates, with `rule`.
        compared: numbers of images of the side that loses them, and of the other one.
        images: the near duplicates of the former.
    """

    encoder: str
    rule: str
    threshold: float
    compared: tuple[int, int]
    images: tuple[TwinImage, ...]


class Prototypes(Config):
    """How much alike classes must look to be twins.

    Args:
        quantile: the threshold is this quantile of the similarity of the two halves of a class.
        classes: number of classes with at least two images; the others, `left_out`, are not compared.
        within: median similarity of the two halves of a class.
        pairs: number of pairs of classes, one of each side, that are twins.
    """

    encoder: str
    quantile: float
    threshold: float
    classes: int
    left_out: int
    within: float
    pairs: int


class Twins(Config):
    """What images say about a split or an audit; None where it was not asked.

    Args:
        pretraining: the lists of classes that the vision encoder was trained on.
    """

    duplicates: Duplicates | None = None
    prototypes: Prototypes | None = None
    pretraining: tuple[str, ...] = ()


def read_threshold(uri: str) -> SimilarityThreshold:
    """Reads a stored threshold.

    Raises:
        RequestError: there is none, or a newer version of this package made it.
        RunError: it is damaged.
    """
    with storage.reading(uri, "threshold"):
        return read_document(SimilarityThreshold, uri, "make it again with `sharelock concepts threshold`")
