"""Visual twins, by frozen features: images of a test that a training has too, and classes that look alike.

Three things are told apart. `duplicate_image`: an image has a near duplicate on the other side. `class_prototype`: two
classes look as much alike as two halves of one class do. `pretraining`: the vision encoder itself was trained on the
class, or on one that WordNet relates to it, whatever the alignment was trained on.

Features are centred: uncentred ones of many encoders are all alike. For near duplicates they are whitened too, which
weakens the directions that images of one class share (Jegou and Chum, ECCV 2012): of the same picture cropped,
compressed or mirrored, many more are then found at the same number of alarms (docs/concepts.md).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharelock_ray.concepts.compared import AUTO, DIGITS, QUANTILE, Duplicates, Prototypes, TwinImage
from sharelock_ray.concepts.concept import Concept, read_concepts
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.relations import Relations, Rules, Side
from sharelock_ray.concepts.wordnet import WordNet
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.ranks import blocks, units
from sharelock_ray.evaluation.signatures.duplicates import mean_of, nearest_by_cosine
from sharelock_ray.evaluation.signatures.evidence import sample
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.runs.checkpoint import side_of

_LOW, _FURTHER, _MOST = (0.05, 0.25), 4, 0.999
"""Quantiles of the usual cosine, and how many times their difference near duplicates are above it."""
_SHRINKAGE, _SAMPLED = 1.0, 20_000
"""Of the mean variance; and images of a set from which directions are estimated."""
_QUERIES = 2000
# What the end of a timm model's name says about its pretraining: with these labels, or on these images without labels.
_PRETRAINING = {
    r"in1k|\.dino$|\.mae$": "timm://imagenet-1k",
    r"in12k": "timm://imagenet-12k",
    r"in21k": "timm://imagenet-21k-goog",
    r"in22k": "timm://imagenet-22k",
}


@dataclass(frozen=True)
class Pictures:
    """Images of concepts by a vision encoder.

    Args:
        features: a vision set; a label is a position in `listed`. Without any labels, all images are of each side.
        listed: concepts by label.

    Raises:
        RequestError: it is no vision set, or has a label without a concept.
    """

    features: FeatureSet
    listed: tuple[Concept, ...]

    def __post_init__(self) -> None:
        features = self.features
        if features.manifest.modality != "vision":
            raise RequestError(f"{features.uri} is a {features.manifest.modality} set: give one of images")
        labels = features.labels[~np.isnan(features.labels)]
        if len(labels) and labels.max() >= len(self.listed):
            raise RequestError(
                f"{features.uri} has the label {labels.max():.0f}, but there are {len(self.listed):,} concepts: "
                f"give the list of its classes, in the order of their labels"
            )

    @property
    def encoder(self) -> str:
        """Folder name of the encoder's feature sets, `<name>-<hash8>`."""
        side = side_of(self.features.manifest)
        return f"{side.encoder.name}-{side.identity}"

    @property
    def has_labels(self) -> bool:
        return not bool(np.isnan(self.features.labels).all())

    @property
    def model(self) -> str:
        """Name of the encoder's model."""
        return side_of(self.features.manifest).encoder.model

    def rows(self, concepts: Sequence[Concept]) -> np.ndarray:
        """Indices of the images of these concepts."""
        labels = self.features.labels
        if not self.has_labels:
            return np.arange(len(labels))
        wanted = set(map(str, concepts))
        return np.flatnonzero(np.isin(labels, [i for i, each in enumerate(self.listed) if str(each) in wanted]))

    def name(self, row: int) -> str:
        """An image with its concept, for sentences."""
        label = self.features.labels[row]
        key = self.features.table["key"][int(row)].as_py()
        return key if np.isnan(label) else f"{key} ({self.listed[int(label)]})"


def duplicate_images(
    pictures: Pictures,
    rows: np.ndarray,
    others: Pictures,
    other_rows: np.ndarray,
    side: Side = "unseen",
    threshold: float | None = None,
) -> Duplicates:
    """Finds images with a near duplicate among others.

    Args:
        rows: (N,) indices of the images that are asked about.
        other_rows: (M,) indices of those of the other side.
        side: which side `pictures` is.
        threshold: least cosine; None: by the rule of `_usual`.

    Raises:
        RequestError: the sets are of different encoders, or one side has no images.
    """
    _require_comparable(pictures, others)
    if not len(rows) or not len(other_rows):
        empty = pictures if not len(rows) else others
        raise RequestError(f"{empty.features.uri} has no images of the concepts: check that the list is of its labels")
    ours, theirs = torch.from_numpy(rows), torch.from_numpy(other_rows)
    embeddings, other = pictures.features.embeddings, others.features.embeddings
    mean, axes = _white([(embeddings, rows), (other, other_rows)])
    cosine, place = nearest_by_cosine(embeddings, other, ours, theirs, mean, axes)
    given = threshold is not None
    if threshold is None:
        threshold = _usual(other, theirs, mean, axes)
    at = round(threshold, DIGITS)
    values = cosine.double().numpy().round(DIGITS)
    names = {"seen": "training", "unseen": "test"}
    images = []
    for i in np.flatnonzero(values >= at).tolist():
        row, twin = int(rows[i]), int(other_rows[place[i]])
        of = (others.name(twin), pictures.name(row)) if side == "unseen" else (pictures.name(row), others.name(twin))
        detail = (
            f"the {names[side]} image {pictures.name(row)} is a near duplicate of {others.name(twin)}: a whitened "
            f"cosine of {values[i]:.3f} by {pictures.encoder}; {at:.3f} is one"
        )
        found = Evidence(rule="duplicate_image", seen=of[0], unseen=of[1], detail=detail, score=values[i])
        images.append(TwinImage(key=pictures.features.table["key"][row].as_py(), evidence=found))
    return Duplicates(
        encoder=pictures.encoder,
        rule="given" if given else "above the usual cosine of different images of the other side",
        threshold=at,
        compared=(len(rows), len(other_rows)),
        images=tuple(images),
    )


class PrototypeSimilarity:
    """Evidence that a class looks like one of the other side.

    The prototype of a class is the mean of two unit vectors, each the mean unit feature of half of its images. The
    similarity of two classes is the inner product of their prototypes: the mean of four cosines of halves. That of a
    class to itself is the cosine of its own two halves, so that both have the same noise from few images.

    Args:
        pictures: images of `concepts`, about which `evidence` is asked.
        others: images of `listed`.
        side: which side `listed` is.
        quantile: twins are more alike than the halves of this share of the classes.

    Raises:
        RequestError: the sets are of different encoders, or fewer than two classes have two images.
    """

    def __init__(
        self,
        pictures: Pictures,
        concepts: Sequence[Concept],
        others: Pictures,
        listed: Sequence[Concept],
        side: Side = "seen",
        quantile: float = QUANTILE,
    ) -> None:
        _require_comparable(pictures, others)
        self.side = side
        rows = torch.from_numpy(others.rows(listed))
        if not len(rows):
            raise RequestError(f"{others.features.uri} has no images of the concepts: check the order of its labels")
        mean = mean_of(others.features.embeddings, rows)
        own, other = _halves(pictures, concepts, mean), _halves(others, listed, mean)
        within = np.array([float(first @ second) for first, second in (*own.values(), *other.values())])
        if not own or not other:
            raise RequestError(
                f"prototypes need classes with at least two labelled images: {pictures.features.uri} has {len(own):,}, "
                f"and {others.features.uri} {len(other):,}"
            )
        threshold = round(float(np.quantile(within, quantile)), DIGITS)
        prototypes = torch.stack([torch.stack(of).mean(0) for of in other.values()])
        self.listed = {str(each): each for each in listed}
        names = list(other)
        self._near: dict[str, tuple[str, float]] = {}
        pairs = 0
        for name, halves in own.items():
            values = (prototypes @ torch.stack(halves).mean(0)).double().numpy().round(DIGITS)
            self._near[name] = names[int(values.argmax())], float(values.max())
            pairs += int((values >= threshold).sum())
        self.found = Prototypes(
            encoder=pictures.encoder,
            quantile=quantile,
            threshold=threshold,
            classes=len(within),
            left_out=len(concepts) + len(listed) - len(within),
            within=round(float(np.median(within)), DIGITS),
            pairs=pairs,
        )

    def nearest(self, concept: Concept) -> tuple[str, float] | None:
        """The listed concept that looks most alike, and the similarity; None without two images."""
        return self._near.get(str(concept))

    def evidence(self, concept: Concept) -> list[Evidence]:
        """The class that looks most alike, if it is a twin."""
        other, value = self.nearest(concept) or ("", -1.0)
        if not other or value < self.found.threshold:
            return []
        seen, unseen = (other, str(concept)) if self.side == "seen" else (str(concept), other)
        detail = (
            f"images of {unseen} and {seen} have prototypes of similarity {value:.3f} by {self.found.encoder}; two "
            f"halves of one class have {self.found.within:.3f}, and {1 - self.found.quantile:.0%} of the classes at "
            f"least {self.found.threshold:.3f}"
        )
        return [Evidence(rule="class_prototype", seen=seen, unseen=unseen, detail=detail, score=value)]


class Pretraining:
    """Evidence that the vision encoder was itself trained on a class, or on one that WordNet relates to it.

    Args:
        sources: lists of classes, such as `timm://imagenet-1k`.
        encoder: name of the vision encoder, for sentences.

    Raises:
        RequestError: there is no such list.
    """

    def __init__(self, sources: Sequence[str], encoder: str, wordnet: WordNet, rules: Rules) -> None:
        self.encoder, self.sources = encoder, tuple(sources)
        self._relations = [(source, Relations(read_concepts(source, wordnet), wordnet, rules)) for source in sources]

    def evidence(self, concept: Concept) -> list[Evidence]:
        """For each list, the nearest related class; one that is the same concept comes first."""
        found = []
        for source, relations in self._relations:
            related = sorted(relations.evidence(concept), key=lambda each: (each.distance or 0, each.rule))
            if related:
                first = related[0]
                detail = f"{self.encoder} was trained on {first.seen} of {source}: {first.detail} ({first.rule})"
                found.append(first.model_copy(update={"rule": "pretraining", "detail": detail}))
        return found


def pretraining_of(source: str, model: str) -> list[str]:
    """The lists of classes that a vision model was trained on.

    Args:
        source: lists separated by commas, or `auto`, by the model's name in timm.

    Raises:
        RequestError: the name of the model does not say it.
    """
    if source != AUTO:
        return [each.strip() for each in source.split(",") if each.strip()]
    found = [of for pattern, of in _PRETRAINING.items() if re.search(pattern, model)]
    if not found:
        raise RequestError(
            f"the name {model} does not say on which classes it was trained: name a list of them, such as "
            f"timm://imagenet-1k, or leave --pretraining out"
        )
    return found


def _usual(embeddings: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> float:
    """The threshold by rule: q + 4 (q - p), where p and q are quantiles of 5 % and 25 %.

    They are of the cosines of one half of the images, (N,) `rows`, to the nearest of the other half. Low quantiles are
    those of images without a duplicate among their own, and do not depend on how many the other side has of them.
    """
    first, second = rows[::2], rows[1::2]
    if not len(second):
        return _MOST
    first = first[torch.from_numpy(sample(len(first), _QUERIES))]
    low, quarter = (
        nearest_by_cosine(embeddings, embeddings, first, second, mean, axes)[0].quantile(torch.tensor(_LOW)).tolist()
    )
    return float(min(quarter + _FURTHER * (quarter - low), _MOST))


def _white(sets: Sequence[tuple[torch.Tensor, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(D,) mean and (D, D) axes by which features have about unit variance in all directions.

    Args:
        sets: embeddings, and the rows that are used; of many, a part.
    """
    some = [of[torch.from_numpy(rows[sample(len(rows), _SAMPLED)])].double() for of, rows in sets]
    values = torch.cat(some)
    mean = values.mean(0)
    variances, directions = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    # Directions in which there is almost nothing but noise are not raised.
    scales = (variances.clamp(min=0) + _SHRINKAGE * variances.mean()).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    return mean.float(), (directions * scales).float()


def _halves(pictures: Pictures, concepts: Sequence[Concept], mean: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
    """(D,) mean unit features, at length 1, of both halves of the images of each concept with at least two.

    Which half an image is in depends on its key alone.
    """
    features = pictures.features
    labels = features.labels
    label_of = {str(each): label for label, each in enumerate(pictures.listed)}
    order = np.lexsort((features.columns["key_hash"], labels))
    order = order[: int((~np.isnan(labels)).sum())]
    starts = np.searchsorted(labels[order], np.arange(len(pictures.listed) + 1))
    found = {}
    for concept in concepts:
        label = label_of.get(str(concept))
        rows = order[starts[label] : starts[label + 1]] if label is not None else order[:0]
        if len(rows) > 1:
            found[str(concept)] = tuple(_mean_unit(features, rows[start::2], mean) for start in (0, 1))
    return found


def _mean_unit(features: FeatureSet, rows: np.ndarray, mean: torch.Tensor) -> torch.Tensor:
    indices = torch.from_numpy(rows)
    parts = [units(features.embeddings[indices[part]].float() - mean).double().sum(0) for part in blocks(len(rows))]
    return torch.nn.functional.normalize(torch.stack(parts).sum(0), dim=0).float()


def _require_comparable(pictures: Pictures, others: Pictures) -> None:
    if pictures.encoder.rpartition("-")[2] != others.encoder.rpartition("-")[2]:
        raise RequestError(
            f"{pictures.features.uri} is of {pictures.encoder}, but {others.features.uri} of {others.encoder}: compare "
            f"features of one encoder"
        )
