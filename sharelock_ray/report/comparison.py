"""Scores of several models, by what they measure: as a table, and for a program. Does not import torch."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from itertools import zip_longest
from typing import Any, Literal

from rich.table import Table

from sharelock_ray.evaluation.benchmark import read_benchmark
from sharelock_ray.evaluation.published import published
from sharelock_ray.evaluation.result import (
    ClassificationResult,
    CompositionalRecord,
    EvaluationRecord,
    GeneralisedRecord,
    MultiLabelRecord,
    RetrievalRecord,
    Ties,
    ZeroShotRecord,
    language_of,
)
from sharelock_ray.evaluation.result import scores as scores_of
from sharelock_ray.evaluation.samples import samples_of
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.report.table import text_table

PAGE = "compare.html"
_LANGUAGES_SHOWN = 4
"""Languages of a data set that the terminal shows, at most."""
_COMPOSITIONAL = ("two_images_two_captions", "one_image_many_captions")
_PROTOCOL = {
    "items": "images",
    "n": "queries",
    "candidates": "candidates",
    "ties": "the rule for ties",
    "class_digest": "class names",
    "truth_digest": "right answers",
}
"""Fields of a measure that are not in its title, as notes call them."""
_TASKS = {"nearest_neighbours": "nearest neighbours, ", "linear_probe": "linear probe, "}


@dataclass(frozen=True)
class Model:
    """A model of the comparison. What is not known is None."""

    name: str
    published: bool = False
    vision: str | None = None
    """The vision encoder."""
    language_model: str | None = None
    data: str | None = None
    """What it was trained or aligned on."""
    note: str | None = None


@dataclass(frozen=True)
class Measure:
    """What a score measures. Scores of equal measures compare."""

    task: str
    dataset: str | None
    """Name of a data set or benchmark. None in documents of versions 1 and 2."""
    split: str | None
    candidate_set: str | None
    """Which classes are ranked in zero-shot classification."""
    language: str | None
    """None: that of the split itself."""
    kind: str | None
    """Kind of change in compositional choice, None for all kinds; or the split of concepts."""
    metric: str
    items: int | None
    """Number of images, or of examples of compositional choice."""
    n: int | None
    """Number of queries, over which the score is a mean."""
    candidates: int | None
    """Number of items that are ranked for each query."""
    ties: Ties | None
    """None: the source does not say."""
    class_digest: str | None = None
    """Of the class names. None if there are none, or the source does not say, as `truth_digest`."""
    truth_digest: str | None = None
    """Of what is right: the classes of labels, the labels of images, or the examples."""

    @property
    def title(self) -> str:
        """Its data and its metric."""
        data = self.dataset or f"{self.split} split"
        more = ", ".join(text for text in (self.language, self.kind) if text)
        every = " among all classes" if self.candidate_set == "all" else ""
        return f"{data}{f' ({more})' if more else ''}: {_TASKS.get(self.task, '')}{self.metric}{every}"

    @property
    def protocol(self) -> str:
        """What else decides whether scores compare."""
        sizes = [f"{self.n:,} queries" if self.n else "", f"{self.candidates:,} candidates" if self.candidates else ""]
        return ", ".join(text for text in (*sizes, f"ties {self.ties}" if self.ties else "") if text)


@dataclass(frozen=True)
class Score:
    """A fraction with its 95 % interval, which published scores do not have."""

    model: Model
    measure: Measure
    value: float
    low: float | None
    high: float | None
    chance: float | None
    tied: int | None
    """Number of queries with a tie that the rule decided."""
    source: str
    """Place of the document, or the publication."""
    second_hand: bool = False
    """Whether a published score was read in a text that quotes its source."""
    main: bool = False
    """Whether it is of a main metric: top-1, recall at the smallest k, mean average precision, choices of all kinds."""
    templates: tuple[str, ...] | None = None
    samples: str | None = None
    """URI of what the model did with each sample; see `evaluation.samples`."""

    def row(self) -> dict[str, Any]:
        """The score as one line of a table."""
        model = asdict(self.model)
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("model", "measure", "main", "templates", "samples"):
            del own[name]
        return {"model": model.pop("name"), **model, **asdict(self.measure), **own}


@dataclass(frozen=True)
class PairedScore:
    """A score of a run, compared with that of the first run on the same samples."""

    measure: Measure
    first: Model
    model: Model
    difference: Estimate
    """Score of `model` minus that of `first`, with the 95 % interval of the paired bootstrap."""
    test: Literal["McNemar", "bootstrap"]
    """McNemar's exact test, or the paired bootstrap over images."""
    p: float
    p_holm: float
    """With Holm's correction for all comparisons of the table."""
    first_only: int | None = None
    """Number of queries on which only `first` is right. None of scores that are no mean over queries."""
    model_only: int | None = None

    def row(self) -> dict[str, Any]:
        """The comparison as one line of a table."""
        of = {"model": self.model.name, "compared_with": self.first.name, **asdict(self.measure)}
        found = {"difference": self.difference.value, "low": self.difference.low, "high": self.difference.high}
        own = {name: getattr(self, name) for name in ("test", "p", "p_holm", "first_only", "model_only")}
        return of | found | own


@dataclass(frozen=True)
class Comparison:
    """Scores of runs, beside published ones."""

    runs: tuple[Model, ...]
    scores: tuple[Score, ...]
    """Those of the runs, and then all published ones."""
    notes: tuple[str, ...]
    page: str | None = None
    """URI of the page; None if none is written."""
    paired: tuple[PairedScore, ...] = ()
    """Main scores of the other runs, compared with those of the first on the same samples."""

    @cached_property
    def groups(self) -> dict[Measure, list[Score]]:
        """The scores that compare, by measure of the runs, in their order; published ones last."""
        found: dict[Measure, list[Score]] = defaultdict(list)
        for score in self.scores:
            if not score.model.published:
                found[score.measure].append(score)
        for score in self.scores:
            for measure, scores in found.items():
                if score.model.published and _compares(score.measure, measure):
                    scores.append(score)
        return dict(found)

    @cached_property
    def main(self) -> dict[Measure, list[Score]]:
        """The groups of main metrics."""
        return {of: scores for of, scores in self.groups.items() if any(score.main for score in scores)}

    @property
    def languages(self) -> int:
        """Number of languages of the data set that has most."""
        return max(map(len, self._languages().values()), default=0)

    @property
    def overview(self) -> dict[Measure, list[Score]]:
        """The groups of main metrics, without those of data sets in many languages."""
        counts = self._languages()
        few = {of for of, languages in counts.items() if len(languages) <= _LANGUAGES_SHOWN}
        return {of: scores for of, scores in self.main.items() if (of.dataset, of.metric) in few or not of.language}

    def table(self) -> Table:
        """The overview for a terminal."""
        rows = []
        for measure, scores in self.overview.items():
            # The second row of a group has room for what does not fit beside the title.
            for label, score in zip_longest([measure.title, f"  {measure.protocol}"], scores):
                shown = ["", "", "", ""] if score is None else [model_text(score.model), *value_texts(score)]
                rows.append([label or "", *shown])
        header = ["score", "model", "value", "95 % interval", "chance"]
        more = f"Scores of {self.languages} languages are on the page and in the tables of --output."
        return text_table(header, rows, caption=more if self.languages > _LANGUAGES_SHOWN else None)

    def paired_table(self) -> Table:
        """The comparisons of the overview for a terminal."""
        shown = [each for each in self.paired if each.measure in self.overview]
        rows = [[each.measure.title, each.model.name, *paired_texts(each)] for each in shown]
        return text_table(PAIRED_HEADER, rows, caption=self.paired_caption)

    @property
    def paired_caption(self) -> str:
        """What the p-values of the comparisons are."""
        return (
            f"Differences from {self.paired[0].first.name} on the same samples, in percentage points. "
            f"p-values are two-sided; Holm's correction is for all {len(self.paired):,} comparisons."
            if self.paired
            else ""
        )

    def _languages(self) -> dict[tuple[str | None, str], set[str]]:
        """The languages of each data set and main metric."""
        found: dict[tuple[str | None, str], set[str]] = defaultdict(set)
        for measure in self.main:
            if measure.language:
                found[measure.dataset, measure.metric].add(measure.language)
        return found

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "page": self.page,
            "notes": list(self.notes),
            "scores": [score.row() for score in self.scores],
            "paired": [each.row() for each in self.paired],
        }


def compared(scores: Sequence[Score], notes: Iterable[str] = (), page: str | None = None) -> Comparison:
    """Puts scores of runs beside published ones, and notes what a reader must know to compare them."""
    of_others = published_scores()
    runs = tuple(dict.fromkeys(score.model for score in scores))
    found = Comparison(runs, (*scores, *of_others), (), page)
    groups = found.main
    remarks = [*_kept_apart(groups), *_unnamed(groups), *_of_templates(groups)]
    if len(runs) > 1 and all(len({score.model for score in group} & set(runs)) == 1 for group in groups.values()):
        remarks.append("no two runs were scored on the same images by the same rules")
    if any(score.model.published for group in groups.values() for score in group):
        remarks.append(
            "published scores follow the protocols of their sources, which may have other templates, class names and "
            "rules for ties; they have no intervals"
        )
    else:
        remarks.append("no published score is of these data: benchmarks that have some are listed on the page")
    return Comparison(runs, found.scores, (*dict.fromkeys(remarks), *notes), page)


def run_scores(
    model: Model, records: Iterable[EvaluationRecord], source: str, classes: str | None = None
) -> list[Score]:
    """All scores in the records of a run.

    Args:
        source: URI of the document. The folder of samples is beside it.
        classes: digest of the class names of the run's own split.
    """
    found = []
    for record in records:
        request = record.benchmark
        named = isinstance(record, ZeroShotRecord) and record.result.candidate_set != "captions"
        digests = (request.class_digest, request.truth_digest) if request else (classes if named else None, None)
        samples = samples_of(record, source.rpartition("/")[0])
        for number in _numbers(record):
            measure = Measure(
                task=record.task,
                dataset=record.dataset,
                split=record.split,
                candidate_set=getattr(record.result, "candidate_set", None),
                language=language_of(record),
                kind=number.kind,
                metric=number.metric,
                items=record.result.images if number.items is None else number.items,
                n=number.n,
                candidates=number.candidates,
                ties=record.result.ties,
                class_digest=digests[0],
                truth_digest=digests[1],
            )
            value, low, high = number.value
            templates = getattr(record, "templates", None)
            score = Score(model, measure, value, low, high, number.chance, number.tied, source)
            found.append(replace(score, main=number.main, templates=templates, samples=samples))
    return found


@cache
def published_scores() -> tuple[Score, ...]:
    """All published scores."""
    found = []
    for each in published():
        model = Model(each.model, True, each.vision, each.language, each.data, each.note)
        for report in each.reports:
            for name, scores in report.scores.items():
                benchmark = read_benchmark(name)
                task = "compositional" if benchmark.task in _COMPOSITIONAL else benchmark.task
                for metric, percent in scores.items():
                    measure = Measure(
                        task=task,
                        dataset=name,
                        split=None,
                        candidate_set=None,
                        language=benchmark.languages[0],
                        kind=None,
                        metric=metric,
                        items=benchmark.size,
                        n=None,
                        candidates=None,
                        ties=None,
                    )
                    value = round(percent / 100, 6)
                    score = Score(model, measure, value, None, None, None, None, report.source, report.second_hand)
                    found.append(score)
    return tuple(found)


PAIRED_HEADER = ["score", "model", "difference", "95 % interval", "p", "p (Holm)", "test"]


def paired_texts(of: PairedScore) -> list[str]:
    """Difference and interval in percentage points, both p-values, and the test."""
    value, low, high = (f"{100 * x:+.1f}" for x in _bounds(of.difference))
    return [value, f"{low} to {high}", *(f"{p:.2g}" if p >= 0.0001 else "< 0.0001" for p in (of.p, of.p_holm)), of.test]


def model_text(model: Model) -> str:
    """A model's name; that of a published one has its data, which tells its rows apart."""
    return f"{model.name}, {model.data}" if model.published and model.data else model.name


def value_texts(score: Score) -> list[str]:
    """Value, interval and chance as percentages; a published value has the digits of its source, and no interval."""
    chance = "" if score.chance is None else f"{score.chance:.1%}"
    if score.low is None or score.high is None:
        digits = 1 if not score.model.published or round(score.value, 3) == score.value else 2
        return [f"{score.value:.{digits}%}", "published" if score.model.published else "", chance]
    return [f"{score.value:.1%}", f"{score.low:.1%} to {score.high:.1%}", chance]


@dataclass(frozen=True)
class _Number:
    """A number in a record."""

    metric: str
    value: tuple[float, float | None, float | None]
    """With the bounds of its interval."""
    n: int
    candidates: int | None
    chance: float | None = None
    tied: int | None = None
    main: bool = False
    kind: str | None = None
    items: int | None = None
    """None: as many as the record has images."""


def _numbers(record: EvaluationRecord) -> Iterator[_Number]:
    match record:
        case RetrievalRecord(result=found):
            for direction, n, candidates, tied in (
                ("image_to_text", found.images, found.texts, found.tied_images),
                ("text_to_image", found.texts, found.images, found.tied_texts),
            ):
                recalls: dict[int, Estimate] = getattr(found, direction)
                chance = getattr(found, f"chance_{direction}") or {}
                for k, value in recalls.items():
                    metric = f"{direction.replace('_', ' ')} recall@{k}"
                    yield _Number(metric, _bounds(value), n, candidates, chance.get(k), tied, k == min(recalls))
        case CompositionalRecord(result=found):
            candidates_of = {"text": found.texts_of_sample, "image": found.images_of_sample, "group": None}
            for kind, scores in [(None, found.total), *found.by_kind.items()]:
                for name, choices in candidates_of.items():
                    score: Estimate | None = getattr(scores, name)
                    if score is not None:
                        yield _Number(
                            f"{name} score",
                            _bounds(score),
                            scores.samples,
                            choices,
                            chance=getattr(found.chance, name),
                            tied=found.tied if kind is None else None,
                            main=kind is None,
                            kind=kind,
                            items=scores.samples,
                        )
        case GeneralisedRecord(result=found):
            for place, of in enumerate(scores_of(record)):
                yield _Number(
                    of.measure,
                    _bounds(of.value),
                    found.images,
                    found.unseen_classes + (found.seen_classes if place else 0),
                    of.chance,
                    main=not place,
                    # Accuracies after training on other classes do not compare.
                    kind=f"split {record.concepts}",
                )
        case MultiLabelRecord(result=found):
            precision, n = _bounds(found.mean_average_precision), found.images
            yield _Number("mean average precision", precision, n, found.candidates, found.chance, found.tied, True)
        case _:
            result = record.result
            n, candidates = result.images, result.candidates
            yield _Number("top-1", _bounds(result.top_1), n, candidates, result.chance, result.tied, True)
            yield _Number("top-5", _bounds(result.top_5), n, candidates)
            if isinstance(result, ClassificationResult):
                low, high = result.mean_per_class_interval or (None, None)
                yield _Number("mean per class", (result.mean_per_class, low, high), n, candidates, result.chance)


def _bounds(of: Estimate) -> tuple[float, float, float]:
    return of.value, of.low, of.high


def _compares(published: Measure, measure: Measure) -> bool:
    """Whether a published score is of the same data and metric, on all images and all classes of the benchmark."""
    return (
        (published.task, published.dataset, published.metric) == (measure.task, measure.dataset, measure.metric)
        and measure.kind is None
        and measure.language in (None, published.language)
        and published.items in (None, measure.items)
        and measure.candidate_set != "present"
    )


def _kept_apart(measures: Iterable[Measure]) -> list[str]:
    """Notes on scores that runs have of different images or by different rules."""
    variants: dict[tuple[Any, ...], list[Measure]] = defaultdict(list)
    for measure in measures:
        variants[tuple(value for name, value in asdict(measure).items() if name not in _PROTOCOL)].append(measure)
    titles: dict[str, list[str]] = defaultdict(list)
    for same in variants.values():
        differ = [text for name, text in _PROTOCOL.items() if len({getattr(of, name) for of in same}) > 1]
        if differ:
            titles[f"scores are kept apart, since they differ in {', '.join(differ)}"].append(same[0].title)
    return collapsed(titles)


def _unnamed(groups: Mapping[Measure, Sequence[Score]]) -> list[str]:
    """Old documents do not name their data."""
    if any(of.dataset is None and len(scores) > 1 for of, scores in groups.items()):
        return ["documents of versions 1 and 2 do not name their data set: check that the runs have the same images"]
    return []


def _of_templates(groups: Mapping[Measure, Sequence[Score]]) -> list[str]:
    titles = [
        of.title
        for of, scores in groups.items()
        if len({score.templates for score in scores if not score.model.published}) > 1
    ]
    return collapsed({"the runs have different templates": titles}) if titles else []


def collapsed(titles: Mapping[str, Sequence[str]]) -> list[str]:
    """One note for all titles of which the same is said."""
    return [f"{of[0]}{f' and {len(of) - 1:,} more' if len(of) > 1 else ''}: {text}" for text, of in titles.items()]
