"""Similar names: the cosine of two names by a language encoder, against a threshold that was chosen for that encoder.

Cosines of different encoders do not compare: "dog" and "puppy" have 0.97 by one, where "dog" and "red bus" have 0.87,
and 0.80 by another, where unrelated names have 0.1. A threshold is therefore chosen on pairs of words that people have
judged, such as SimLex-999 (Hill et al., Computational Linguistics 41:4, 2015) or WordSim-353, and is refused for names
of another encoder.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from sharelock_ray import storage
from sharelock_ray.concepts.compared import DIGITS, NAME, POSITIVE, CurvePoint, Threshold
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.relations import Side
from sharelock_ray.encoders.resolved import resolve
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.ranks import units
from sharelock_ray.evaluation.signatures.duplicates import nearest_by_cosine
from sharelock_ray.evaluation.statistics import proportion
from sharelock_ray.features.featureset import FeatureSet
from sharelock_ray.runs.checkpoint import side_of
from sharelock_ray.sources.content import read_lines

_SHOWN = 3


class LabelledPair(NamedTuple):
    """Two words and how similar people find them."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Names:
    """Embeddings of names by one encoder.

    Args:
        encoder: the folder name of its feature sets, `<name>-<hash8>`.
        encode: (N, D) embeddings of N texts; raises RequestError for a text that has none.
    """

    encoder: str
    encode: Callable[[Sequence[str]], torch.Tensor]

    def units(self, names: Sequence[str], template: str) -> torch.Tensor:
        """(N, D) embeddings of names in a template, at length 1.

        Raises:
            RequestError: a name has no embedding.
        """
        found = units(self.encode([template.replace(NAME, name) for name in names]))
        if lost := [name for name, ok in zip(names, found.isfinite().all(1).tolist(), strict=True) if not ok]:
            raise RequestError(f"{self.encoder} cannot embed {_listed(lost)}: leave them out, or use another encoder")
        return found


class NameSimilarity:
    """Evidence that the names of two concepts are similar, of each concept and the nearest of a list.

    Args:
        listed: the concepts of one side.
        concepts: those of the other, about which `evidence` is asked.
        side: which side `listed` is.

    Raises:
        RequestError: the threshold was chosen for another encoder, or a name has no embedding.
    """

    def __init__(
        self, listed: Sequence[Concept], concepts: Sequence[Concept], names: Names, rule: Threshold, side: Side = "seen"
    ) -> None:
        if _hash(names.encoder) != _hash(rule.encoder):
            raise RequestError(
                f"the threshold was chosen for {rule.encoder}, and the names are of {names.encoder}, whose cosines do "
                f"not compare: choose one with `sharelock concepts threshold`"
            )
        self.listed, self.rule, self.side = tuple(listed), rule, side
        own, others = (names.units([each.words for each in of], rule.template) for of in (concepts, listed))
        rows, columns = torch.arange(len(own)), torch.arange(len(others))
        cosine, place = nearest_by_cosine(own, others, rows, columns, torch.zeros(own.shape[1]))
        self._nearest = {
            str(concept): (self.listed[at], round(value, DIGITS))
            for concept, value, at in zip(concepts, cosine.tolist(), place.tolist(), strict=True)
        }

    def nearest(self, concept: Concept) -> tuple[Concept, float]:
        """The listed concept with the most similar name, and the cosine."""
        return self._nearest[str(concept)]

    def evidence(self, concept: Concept) -> list[Evidence]:
        """The most similar name, if it is similar."""
        other, cosine = self.nearest(concept)
        if cosine < self.rule.threshold:
            return []
        seen, unseen = (other, concept) if self.side == "seen" else (concept, other)
        detail = (
            f'the names "{unseen.words}" and "{seen.words}" have a cosine of {cosine:.3f} by {self.rule.encoder}; '
            f"{self.rule.threshold:.3f} is similar"
        )
        return [Evidence(rule="similarity", seen=str(seen), unseen=str(unseen), detail=detail, score=cosine)]


def names_of_features(features: FeatureSet) -> Names:
    """Embeddings of the texts of a language set.

    Raises:
        RequestError: it is no language set.
    """
    if features.manifest.modality != "language":
        raise RequestError(f"{features.uri} is a {features.manifest.modality} set: give one of texts")
    side = side_of(features.manifest)

    @cache
    def row_of() -> dict[str, int]:
        return {text: row for row, text in enumerate(features.table["text"].to_pylist())}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        if lost := [text for text in texts if text not in row_of()]:
            raise RequestError(
                f"{features.uri} has no embedding of {_listed(lost)}: extract these names, or leave the set out"
            )
        return features.embeddings[torch.tensor([row_of()[text] for text in texts])]

    return Names(f"{side.encoder.name}-{side.identity}", encode)


def names_of_encoder(spec: LanguageSpec, device: str = "cpu") -> Names:
    """Embeddings by a language encoder, which is loaded on first use.

    Raises:
        RequestError: the model is unknown, or its weights do not exist.
    """
    resolved = resolve(spec)

    @cache
    def encoder() -> Any:
        # Loading transformers takes seconds.
        from sharelock_ray.encoders.language import LanguageEncoder

        return LanguageEncoder(spec, device)

    return Names(resolved.folder, lambda texts: torch.from_numpy(encoder().encode(texts)))


def read_pairs(uri: str) -> list[LabelledPair]:
    """Reads labelled pairs: two words and a score in columns separated by tabs or commas.

    SimLex-999 and WordSim-353 as they are published, and as gensim has them, are such files. Lines that start with `#`
    and a header are skipped; the first number after the words is the score.

    Raises:
        RequestError: the file is missing or empty, or a line is no pair.
    """
    found: list[LabelledPair] = []
    headed = False
    for row, line in enumerate(read_lines(uri, "labelled pairs"), 1):
        if line.startswith("#"):
            continue
        first, second, *rest = [*next(csv.reader([line], delimiter="\t" if "\t" in line else ",")), "", ""]
        score = next((number for number in map(_number, rest) if number is not None), None)
        if score is not None and first.strip() and second.strip():
            found.append(LabelledPair(first.strip(), second.strip(), score))
        elif found or headed:
            raise RequestError(f"{uri}, line {row:,}: {line[:60]!r} is no pair: give two words and a score")
        else:
            headed = True
    if not found:
        raise RequestError(f"{uri} has no labelled pairs: give two words and a score in each line")
    return found


def choose_threshold(
    uri: str,
    names: Names,
    template: str = NAME,
    positive: float = POSITIVE,
    precision: float | None = None,
) -> Threshold:
    """Chooses the cosine from which names are similar.

    Args:
        uri: file of labelled pairs, see `read_pairs`.
        positive: least score of a pair that counts as one concept.
        precision: take the lowest threshold with at least this precision; None: that of the highest F1.

    Raises:
        RequestError: no pair counts as one concept, or all do; no threshold has that precision; or as `read_pairs`.
    """
    if NAME not in template:
        raise RequestError(f"the template {template!r} has no {NAME} for the name: add one")
    pairs = read_pairs(uri)
    truth = np.array([pair.score >= positive for pair in pairs])
    if truth.all() or not truth.any():
        raise RequestError(
            f"{truth.sum():,} of {len(pairs):,} pairs of {uri} have a score of at least {positive:g}, and some must "
            f"have one and some not: change the least score of a pair of one concept"
        )
    first, second = (names.units([getattr(pair, of) for pair in pairs], template) for of in ("first", "second"))
    cosine = (first * second).sum(1).double().numpy().round(DIGITS)
    thresholds, hits, taken = _curve(cosine, truth)
    precisions, recalls = hits / taken, hits / truth.sum()
    f1 = 2 * hits / (taken + truth.sum())
    if precision is None:
        best, rule = int(f1.argmax()), "highest F1"
    else:
        enough = np.flatnonzero(precisions >= precision)
        if not len(enough):
            top = precisions.argmax()
            raise RequestError(
                f"no threshold for {names.encoder} has a precision of {precision:g} on {uri}: the highest is "
                f"{precisions[top]:.2f}, at {thresholds[top]:.4f}"
            )
        best, rule = int(enough[-1]), f"lowest with a precision of at least {precision:g}"
    at = thresholds[best]
    # Of equal recalls, the first has the highest threshold and precision.
    shown = np.flatnonzero(np.diff(hits, prepend=0) > 0)
    return Threshold(
        encoder=names.encoder,
        template=template,
        pairs=uri.rpartition("/")[2],
        pairs_sha256=storage.sha256_of(uri),
        positive=positive,
        labelled=len(pairs),
        positives=int(truth.sum()),
        rule=rule,
        threshold=float(at),
        precision=proportion(truth[cosine >= at]),
        recall=proportion(cosine[truth] >= at),
        f1=float(f1[best]),
        average_precision=float((np.diff(recalls, prepend=0) * precisions).sum()),
        curve=tuple(
            CurvePoint(threshold=thresholds[i], precision=precisions[i], recall=recalls[i]) for i in shown.tolist()
        ),
    )


def _curve(cosine: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T,) different thresholds from high to low; pairs of one concept, and all pairs, at or above each."""
    order = np.argsort(-cosine, kind="stable")
    last = np.flatnonzero(np.diff(cosine[order], append=-np.inf))
    return cosine[order][last], np.cumsum(truth[order])[last], last + 1


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _hash(folder: str) -> str:
    return folder.rpartition("-")[2]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names):,} names ({shown})" if len(names) > 1 else shown
