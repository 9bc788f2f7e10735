"""The results of a run or a study, as an object and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from sharelock_ray.evaluation.result import (
    AnyLabelRecord,
    Ceiling,
    ClassificationResult,
    CompositionalRecord,
    EvaluationRecord,
    GeneralisedRecord,
    MultiLabelRecord,
    RetrievalRecord,
    Score,
    ZeroShotRecord,
    all_notes,
    language_of,
    scores,
)
from sharelock_ray.evaluation.signatures.evidence import Signature
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.features.manifest import Manifest
from sharelock_ray.report.heat_map import HeatMap, heat_maps, title_of
from sharelock_ray.report.table import text_table
from sharelock_ray.runs.folder import TrainingResult
from sharelock_ray.study.trials import SHARES, Interval, Point

_SHOWN_POINTS = 20
_LISTED_LANGUAGES = 8
"""Most languages of a data set that have a row each. The page has a heat map of all."""
_PICTURES: Any = {"pairs": {"__all__": {"test_thumbnail", "training_thumbnail"}}}


@dataclass(frozen=True)
class Summary:
    """The content of a run's report; `page` is its URI."""

    title: str
    note: str
    page: str
    features: tuple[Manifest, ...]
    training: TrainingResult | None
    """None if another model than this run's is scored."""
    metrics: tuple[dict[str, Any], ...]
    records: tuple[EvaluationRecord, ...]
    notes: tuple[str, ...]
    """Notes about the whole evaluation."""
    seconds: dict[str, float]
    model: str | None = None
    """The other model."""
    signatures: tuple[Signature, ...] = ()

    @property
    def failures(self) -> list[Signature]:
        """The signatures that are present."""
        return [found for found in self.signatures if found.present]

    @property
    def benchmarks(self) -> list[tuple[EvaluationRecord, Score]]:
        """Each score of each benchmark."""
        return [(record, score) for record in self.records if record.benchmark for score in scores(record)]

    @property
    def ceilings(self) -> list[tuple[str, Ceiling]]:
        """That of each set of compositional choices whose attributes are known, with its name."""
        return [
            (record.benchmark.title if record.benchmark else record.dataset or record.title, record.result.ceiling)
            for record in self.records
            if isinstance(record, CompositionalRecord) and record.result.ceiling
        ]

    @property
    def heat_maps(self) -> list[HeatMap]:
        """Scores by language, of each data set in several languages."""
        return heat_maps(self.records)

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) of each line of the table."""
        training = self.training
        lines = [
            (
                f"{m.split} {m.modality} features",
                f"{m.rows:,} rows x {m.dim} {m.dtype}, rejects: {m.rejects:,} ({m.encoder['name']})",
            )
            for m in self.features
        ]
        if self.model is not None:
            lines.append(("model", self.model))
        if training is not None:
            lines += [
                ("pairs", f"{training.training_pairs:,} trained on, {training.validation_pairs:,} for validation"),
                ("training loss", f"{training.first_loss:.3f} to {training.last_loss:.3f} in {training.steps:,} steps"),
                ("validation loss", f"{training.best_validation_loss:.3f}, the best, at step {training.best_step:,}"),
            ]
        crowded = {heat.title: heat for heat in self.heat_maps if len(heat.rows) > _LISTED_LANGUAGES}
        for record in self.records:
            if language_of(record) is None or title_of(record) not in crowded:
                lines += _record_rows(record)
        for title, heat in crowded.items():
            lines += [(f"{title}: {measure}", text) for measure, text in heat.ranges]
        lines += [(f"{name} {limit.measure} score, ceiling", limit.total.statement) for name, limit in self.ceilings]
        lines += [(f"failure: {found.title}", found.statement) for found in self.failures]
        if absent := ", ".join(dict.fromkeys(found.title for found in self.signatures if not found.present)):
            lines.append(("no sign of", absent))
        lines += [("note", note) for note in all_notes(self.records, self.notes)]
        lines += [(f"seconds: {stage}", f"{seconds:.1f}") for stage, seconds in self.seconds.items()]
        return lines

    def table(self) -> Table:
        """For a terminal."""
        return text_table([], self.rows(), title=self.title)

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "report": self.page,
            "features": [
                {
                    "split": m.split,
                    "modality": m.modality,
                    "encoder": m.encoder["name"],
                    "rows": m.rows,
                    "rejects": m.rejects,
                    "dim": m.dim,
                }
                for m in self.features
            ],
            "model": self.model,
            "training": self.training and self.training.model_dump(mode="json"),
            "evaluation": {
                "records": [record.model_dump(mode="json", exclude={"examples"}) for record in self.records],
                "notes": list(self.notes),
                "signatures": [found.model_dump(mode="json", exclude=_PICTURES) for found in self.signatures],
            },
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class StudySummary:
    """The result of a study: its ranked points and a verdict in words."""

    title: str
    page: str
    objective: str
    states: dict[str, int]
    """Number of trials by final state."""
    points: tuple[Point, ...]
    verdict: str

    def table(self) -> Table:
        """For a terminal; best points first."""
        others = ("recall_at_1", "zero_shot", "validation_loss", "parameters", "seconds")
        shown = [self.objective, *(name for name in others if name != self.objective)]
        shown = [name for name in shown if self.points and name in self.points[0].values]
        rows = []
        for point in self.points[:_SHOWN_POINTS]:
            settings = ", ".join(
                f"{name.rpartition('.')[2]} {'any' if name in point.without_effect else value}"
                for name, value in point.point.items()
            )
            values = (interval_text(point.values.get(name), name) for name in shown)
            rows.append([settings, str(point.seeds), *values])
        return text_table(["point", "seeds", *shown], rows, title=self.title, caption=self.verdict)

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "report": self.page,
            "objective": self.objective,
            "states": self.states,
            "verdict": self.verdict,
            "points": [
                {
                    "point": point.point,
                    "without_effect": list(point.without_effect),
                    "seeds": point.seeds,
                    "difference": point.difference and asdict(point.difference),
                    "p": point.p,
                    "values": {name: asdict(interval) for name, interval in point.values.items()},
                    "runs": list(point.runs),
                }
                for point in self.points
            ],
        }


def interval_text(interval: Interval | None, objective: str, signed: bool = False) -> str:
    """Formats a value of an objective, or a signed difference of two, with its interval."""
    if interval is None:
        return ""
    sign = "+" if signed else ""
    if objective in ("parameters", "seconds"):
        return f"{interval.value:,.0f}" if objective == "parameters" else f"{interval.value:,.1f}"
    shown = f"{{:{sign}.1%}}" if objective in SHARES else f"{{:{sign}.4f}}"
    text = shown.format(interval.value)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({shown.format(interval.low)} to {shown.format(interval.high)})"


def _benchmark_rows(record: EvaluationRecord) -> list[tuple[str, str]]:
    """Of recalls, those at the smallest k: many languages have many rows. The page has all."""
    assert record.benchmark is not None, "a record of the run's own data"
    name = record.benchmark.title
    found = scores(record)
    if isinstance(record, RetrievalRecord):
        found = [score for score in found if score.measure.endswith(f"@{min(record.result.image_to_text)}")]
    images = f" of {record.result.images:,} images"
    return [(f"{name} {score.measure}", _accuracy(score.value, score.chance) + images) for score in found]


def _record_rows(record: EvaluationRecord) -> list[tuple[str, str]]:
    if record.benchmark is not None:
        return _benchmark_rows(record)
    match record:
        case RetrievalRecord():
            return _retrieval_rows(record)
        case CompositionalRecord():
            return _compositional_rows(record)
        case GeneralisedRecord(result=found):
            first, *more = scores(record)
            rows = [(f"mean per class among {found.unseen_classes} unseen classes", first)]
            rows += [(f"  {score.measure}", score) for score in more]
            return [(name, _accuracy(score.value, score.chance)) for name, score in rows]
        case MultiLabelRecord(result=found):
            name = f"mean average precision of {found.classes} classes"
            return [(name, _accuracy(found.mean_average_precision, found.chance))]
        case AnyLabelRecord(result=found):
            return [(f"{record.title} among {found.candidates} classes", _accuracy(found.top_1, found.chance))]
        case ZeroShotRecord(result=found, language=str(language)):
            name = f"{language}: zero-shot among {found.candidates} captions"
            return [(name, _accuracy(found.top_1, found.chance))]
        case ZeroShotRecord(result=found):
            # The classes that have images are named by their number; all classes as such.
            every = "all " if found.candidate_set == "all" else ""
            return _classification_rows(f"zero-shot among {every}{found.candidates} classes", found)
        case _:
            return _classification_rows(f"{record.title} among {record.result.candidates} classes", record.result)


def _classification_rows(name: str, found: ClassificationResult) -> list[tuple[str, str]]:
    return [
        (name, _accuracy(found.top_1, found.chance)),
        ("  top-5, mean per class", f"{found.top_5.value:.1%}, {found.mean_per_class:.1%}"),
    ]


def _compositional_rows(record: CompositionalRecord) -> list[tuple[str, str]]:
    """Kinds of change are not in the table."""
    samples = record.result.total.samples
    return [
        (f"{record.title}: {score.measure} of {samples:,} samples", _accuracy(score.value, score.chance))
        for score in scores(record)
    ]


def _retrieval_rows(record: RetrievalRecord) -> list[tuple[str, str]]:
    found = record.result
    if record.language is not None:
        k = max(found.image_to_text)
        both = f"{found.image_to_text[k].value:.1%} / {found.text_to_image[k].value:.1%}"
        return [(f"{record.language}: recall@{k}", f"{both} of {found.images:,} {record.split} images")]
    rows = []
    for name, recalls in (("image to text", found.image_to_text), ("text to image", found.text_to_image)):
        at = "/".join(str(k) for k in recalls)
        values = " / ".join(f"{recall.value:.1%}" for recall in recalls.values())
        rows.append((f"{name} recall@{at}", f"{values} of {found.images:,} {record.split} images"))
    return rows


def _accuracy(value: Estimate, chance: float | None) -> str:
    known = "" if chance is None else f"; chance {chance:.1%}"
    return f"{value.value:.1%} (95 % interval {value.low:.1%} to {value.high:.1%}{known})"
