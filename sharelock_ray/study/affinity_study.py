"""Do better language models see better? A visual score against a language score, over language models.

One language score is chosen before the scores are known, and it decides. Others are shown with Holm's correction.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from sharelock_ray.config import Config
from sharelock_ray.documents import Document
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import holm
from sharelock_ray.study.correlation import (
    FEWEST,
    Bounds,
    Coefficient,
    Difference,
    Line,
    Measurement,
    Partial,
    Prediction,
    coefficient,
    compare_correlations,
    critical_correlation,
    detectable_correlation,
    fisher_interval,
    fit_line,
    is_constant,
    measurement,
    partial_correlation,
    within_families,
    without_each,
)
from sharelock_ray.study.language_scores import ScoredModel, lower_is_better

DOCUMENT = "affinity.json"
_LISTED = 3


@dataclass(frozen=True)
class Seen:
    """The visual scores of one language encoder."""

    encoder: str
    """Name of the encoder in the recipe."""
    model: str
    """Name or path of its model."""
    runs: tuple[str, ...]
    values: tuple[float, ...]
    """One for each run; the runs differ in the seed."""
    errors: tuple[float | None, ...]
    """Standard error of each, over the images."""

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float | None:
        """Standard error over the seeds and, since all have the same images, undiminished over the images."""
        of_images = [error**2 for error in self.errors if error is not None]
        if len(self.values) == 1:
            return self.errors[0]
        of_seeds = float(np.var(self.values, ddof=1)) / len(self.values)
        return math.sqrt(of_seeds + (float(np.mean(of_images)) if of_images else 0.0))


class Point(Config):
    """A language model with both scores."""

    encoder: str
    model: str
    """Its name in the table of language scores."""
    family: str
    """Its own name if its family is unknown."""
    params_b: float | None
    visual: float
    visual_error: float | None
    """Standard error over seeds and images; None if unknown."""
    language: float
    language_error: float | None
    at_chance: bool
    """Whether the language score does not differ from chance."""
    source: str
    source_date: str
    runs: tuple[str, ...]


class OtherScore(Config):
    """The correlation with a language score that was not chosen."""

    metric: str
    harness: str
    models: int
    r: float
    p: float
    p_holm: float
    """With Holm's correction for all other scores."""
    difference: Difference | None
    """Comparison with the chosen score over the models that have both; positive: the chosen one correlates more."""


class Predicted(Config):
    """The visual score of a model that was not trained."""

    language: float
    visual: Prediction


class Affinity(Document):
    """`affinity.json`: the correlation of a visual score with a language score, over language models."""

    visual: str
    """Title of the visual score, a fraction."""
    protocol: str
    metric: str
    harness: str
    named: bool
    """Whether the request named the language score. Otherwise it is the only one that was given."""
    before: tuple[str, ...] = ()
    """Other language scores that were the chosen ones of earlier analyses in the same folder."""
    lower_is_better: bool
    """Whether better language models have lower scores, so that a negative correlation means that they see better."""
    points: tuple[Point, ...]
    pearson: Coefficient
    spearman: Coefficient
    kendall: Coefficient
    fisher: Bounds
    """Interval of Pearson's coefficient if scores are binormal."""
    without_model: dict[str, float]
    """Pearson's coefficient without each encoder."""
    without_family: dict[str, float]
    critical: float
    """Smallest |r| of so many models that is significant."""
    detectable: float
    """Smallest true |r| that so many models show with 80 % power."""
    given_size: Partial | None
    """Given the logarithm of the number of parameters, over the models of known size."""
    within_families: Partial | None
    measurement: Measurement
    line: Line
    predictions: dict[str, Predicted] = Field(default_factory=dict)
    others: tuple[OtherScore, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def families(self) -> int:
        """Number of families."""
        return len({point.family for point in self.points})


def analyse(
    visual: str,
    protocol: str,
    seen: Sequence[Seen],
    chosen: Mapping[str, ScoredModel],
    others: Sequence[Mapping[str, ScoredModel]] = (),
    new: Sequence[str] = (),
    named: bool = True,
    notes: Iterable[str] = (),
) -> Affinity:
    """Correlates visual scores with the chosen language score, and with others.

    Args:
        visual: title of the visual score.
        seen: the encoders, each with a visual score.
        chosen: language scores by model (see `language_scores.select`); a model is found by the name of its encoder,
            or else by that of its model.
        new: models to predict: each has a language score, or is given with it as NAME=SCORE.
        named: see `Affinity`.

    Raises:
        RequestError: two encoders have the language score of one model, fewer than four have one, or all scores are
            equal; a model to predict has no language score.
    """
    metric, harness = (getattr(next(iter(chosen.values())), name) for name in ("metric", "harness"))
    points = _points(seen, chosen)
    _check(points, seen, chosen, metric)
    x, y, x_error, y_error = (
        np.array([getattr(point, name) or 0.0 for point in points], np.float64)
        for name in ("language", "visual", "language_error", "visual_error")
    )
    families = [point.family for point in points]
    sized = np.array([point.params_b is not None for point in points])
    size = np.log10([point.params_b or 1.0 for point in points])[:, None]
    pearson = coefficient("pearson", x, y, families)
    line = fit_line(x, y)
    predictions = {name: _predicted(name, chosen, line) for name in new}
    return Affinity(
        visual=visual,
        protocol=protocol,
        metric=metric,
        harness=harness,
        named=named,
        lower_is_better=lower_is_better(metric),
        points=tuple(points),
        pearson=pearson,
        spearman=coefficient("spearman", x, y, families),
        kendall=coefficient("kendall", x, y, families),
        fisher=fisher_interval(pearson.value, len(points)),
        without_model=without_each(x, y, [point.encoder for point in points]),
        without_family=without_each(x, y, families),
        critical=critical_correlation(len(points)),
        detectable=detectable_correlation(len(points)),
        given_size=partial_correlation(x[sized], y[sized], size[sized]) if sized.any() else None,
        within_families=within_families(x, y, families),
        measurement=measurement(x, y, x_error, y_error),
        line=line,
        predictions=predictions,
        others=tuple(_others(points, seen, others, lower_is_better(metric))),
        notes=(*notes, *_notes(points, seen, chosen, metric, predictions)),
    )


def _points(seen: Sequence[Seen], scores: Mapping[str, ScoredModel]) -> list[Point]:
    """The encoders that have a language score."""
    found: list[Point] = []
    for each in seen:
        score = _score_of(each, scores)
        if score is None:
            continue
        if twin := next((point.encoder for point in found if point.model == score.model), None):
            raise RequestError(
                f"the encoders {twin} and {each.encoder} both have the language score of {score.model}: a model counts "
                "once, so leave one out, or give scores by the encoders' names"
            )
        found.append(
            Point(
                encoder=each.encoder,
                model=score.model,
                family=score.family or score.model,
                params_b=score.params_b,
                visual=each.value,
                visual_error=each.error,
                language=score.value,
                language_error=score.error,
                at_chance=score.at_chance,
                source=score.source,
                source_date=score.source_date,
                runs=each.runs,
            )
        )
    return found


def _score_of(seen: Seen, scores: Mapping[str, ScoredModel]) -> ScoredModel | None:
    return scores.get(seen.encoder) or scores.get(seen.model)


def _check(points: Sequence[Point], seen: Sequence[Seen], scores: Mapping[str, ScoredModel], metric: str) -> None:
    if len(points) < FEWEST:
        without = _without(seen, scores)
        more = f"; {without[0]} has none{_nearest(without[0], scores)}" if without else ""
        raise RequestError(
            f"{len(points)} of {len(seen)} language encoders have a score in {metric}, and a correlation needs at "
            f"least {FEWEST}{more}"
        )
    for name, values in (("visual score", [p.visual for p in points]), (metric, [p.language for p in points])):
        if is_constant(np.array(values)):
            raise RequestError(
                f"all {len(points)} models have the same {name}, {values[0]:g}: nothing correlates with it"
            )


def _without(seen: Sequence[Seen], scores: Mapping[str, ScoredModel]) -> list[str]:
    """The models without a language score."""
    return [each.model for each in seen if _score_of(each, scores) is None]


def _nearest(name: str, scores: Mapping[str, ScoredModel]) -> str:
    near = difflib.get_close_matches(name, scores, n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""


def _others(
    points: Sequence[Point], seen: Sequence[Seen], others: Sequence[Mapping[str, ScoredModel]], falls: bool
) -> list[OtherScore]:
    chosen = {point.encoder: point.language for point in points}
    found: list[OtherScore] = []
    for scores in others:
        first = next(iter(scores.values()))
        own = _points(seen, scores)
        _check(own, seen, scores, first.metric)
        x, y = (np.array([getattr(point, name) for point in own]) for name in ("language", "visual"))
        pearson = coefficient("pearson", x, y, [point.family for point in own])
        both = [point for point in own if point.encoder in chosen]
        # Better is higher in both scores of a comparison.
        sign, other_sign = (-1 if down else 1 for down in (falls, lower_is_better(first.metric)))
        difference = compare_correlations(
            np.array([point.visual for point in both]),
            sign * np.array([chosen[point.encoder] for point in both]),
            other_sign * np.array([point.language for point in both]),
        )
        found.append(
            OtherScore(
                metric=first.metric,
                harness=first.harness,
                models=len(own),
                r=pearson.value,
                p=pearson.p,
                p_holm=pearson.p,
                difference=difference,
            )
        )
    adjusted = holm([each.p for each in found])
    return [each.model_copy(update={"p_holm": p}) for each, p in zip(found, adjusted, strict=True)]


def _predicted(name: str, scores: Mapping[str, ScoredModel], line: Line) -> Predicted:
    known, _, given = name.partition("=")
    try:
        x = float(given) if given else scores[known].value
    except KeyError:
        raise RequestError(
            f"the model to predict, {name}, has no language score{_nearest(name, scores)}: name one that has, or give "
            "NAME=SCORE"
        ) from None
    except ValueError:
        x = math.nan
    if not math.isfinite(x):
        raise RequestError(f"the language score of {known} must be a number (it is {given!r})")
    return Predicted(language=x, visual=line.predict(x))


def _notes(
    points: Sequence[Point],
    seen: Sequence[Seen],
    scores: Mapping[str, ScoredModel],
    metric: str,
    predictions: Mapping[str, Predicted],
) -> list[str]:
    notes = []
    if without := _without(seen, scores):
        near = _nearest(without[0], scores) if len(without) == 1 else ""
        notes.append(f"left out, without a score in {metric}: {_list(without)}{near}")
    if other := [model for model in scores if model not in {point.model for point in points} | predictions.keys()]:
        notes.append(f"scores of models that are not in the study: {_list(other)}")
    if chance := [point.encoder for point in points if point.at_chance]:
        notes.append(f"at chance in {metric}, which cannot rank them: {_list(chance)}")
    for name, of in (("visual", "visual_error"), ("language", "language_error")):
        if unknown := sum(getattr(point, of) is None for point in points):
            notes.append(f"the error of the {name} score of {unknown} models is unknown and counts as 0")
    if outside := [name for name, each in predictions.items() if each.visual.extrapolates]:
        notes.append(f"predictions outside the language scores of the study, which may not hold: {_list(outside)}")
    return notes


def _list(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
