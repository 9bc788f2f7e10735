"""Evaluation records, as they are stored and shown: one for each task and data set. Does not import torch.

A new task adds a result and a record here, its place in `EvaluationRecord`, and its rows in `report/summary.py`.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sharelock_ray.config import Config
from sharelock_ray.evaluation.statistics import Estimate

Ties = Literal["strict", "first_index"]
"""What counts where a wrong item is as similar to a query as its match (see `ranks`).

`strict`: the query fails. `first_index`: the one with the lower index comes first, as in CLIP-Benchmark 1.6.2, so the
order of the items decides.
"""
FrozenTask = Literal["nearest_neighbours", "linear_probe"]
"""Tasks of frozen vision features, which need neither a model nor texts."""


class Example(Config):
    """One image with its true text and the text that the model ranks first."""

    key: str
    truth: str
    predicted: str
    thumbnail: str | None = None
    """A small PNG in base64. None if the image could not be read, and in documents of version 1."""


class _Result(Config):
    """Fields of every result."""

    images: int
    ties: Ties = "strict"


class ClassificationResult(_Result):
    """Accuracies as fractions."""

    candidates: int
    """Number of classes that are ranked; classes of one name count once under `strict`."""
    classes: int
    """Number of classes that have images."""
    chance: float
    top_1: Estimate
    top_5: Estimate
    mean_per_class: float
    mean_per_class_interval: tuple[float, float] | None = None
    """95 % interval. None in documents of version 3 and earlier, as `tied`."""
    per_class: dict[str, float]
    """Top-1 accuracy by name of the classes that have images; the label follows a name that several classes share."""
    tied: int | None = None
    """Number of images whose class scores the same as a wrong one."""


class ZeroShotResult(ClassificationResult):
    """Zero-shot classification."""

    candidate_set: Literal["present", "all", "subset", "captions"]
    """Which classes are ranked: those that have images, all named classes, a benchmark's own subset of them, or the
    different captions of the images. Accuracies of captions are not listed by class."""


class NeighboursResult(ClassificationResult):
    """Classification by the nearest training images."""

    training_images: int
    neighbours: int
    temperature: float


class ProbeResult(ClassificationResult):
    """Classification by logistic regression."""

    training_images: int
    penalty: float
    """Weight of the penalty, which was chosen on held-out training images."""
    held_out_accuracy: float | None
    """Top-1 accuracy on them. None if the penalty was given."""
    seed: int | None = None
    """Decided which these were. None if the penalty was given, and in documents of version 6 and earlier."""
    iterations: int


class MultiLabelResult(_Result):
    """Average precisions as fractions."""

    candidates: int
    """Number of classes."""
    classes: int
    """Number of classes that have images: the mean is over these."""
    chance: float
    """Mean share of the images that have a class, which is the average precision of a random order of many images."""
    mean_average_precision: Estimate
    per_class: dict[str, float]
    tied: int
    """Number of labels of images whose class scores the same for an image without it."""


class AnyLabelResult(_Result):
    """Accuracies of images that may have several right classes."""

    candidates: int
    classes: int
    """Number of classes that have images."""
    chance: float
    top_1: Estimate
    top_5: Estimate
    tied: int


class CalibratedAccuracy(Config):
    """Accuracies where seen and unseen classes are ranked together, as means over classes."""

    gamma: float
    """What is subtracted from the cosine similarity to a seen class."""
    seen: Estimate
    unseen: Estimate
    harmonic_mean: Estimate


class GeneralisedAccuracy(Config):
    """Classification among seen and unseen classes together."""

    seen_images: int
    uncalibrated: CalibratedAccuracy
    calibrated: CalibratedAccuracy | None
    """With the gamma that was best on validation classes. None if there are none."""
    area: Estimate
    """Area under the curve of seen against unseen accuracy over all gamma (AUSUC)."""


class GeneralisedResult(_Result):
    """Zero-shot classification of unseen classes. `images` counts theirs."""

    seen_classes: int
    """Number of seen classes that are ranked."""
    unseen_classes: int
    chance: float
    """That of `zero_shot`."""
    zero_shot: Estimate
    """Top-1 accuracy among the unseen classes: the mean over those that have images."""
    per_class: dict[str, float]
    """That accuracy by name of the class."""
    generalised: GeneralisedAccuracy | None
    """None if no image has a seen class."""


class RetrievalResult(_Result):
    """Recall at k, by k, as fractions of the queries."""

    texts: int
    chance_image_to_text: dict[int, float] | None = None
    """Recall of a random order. None in documents of version 4 and earlier, as `chance_text_to_image`."""
    chance_text_to_image: dict[int, float] | None = None
    image_to_text: dict[int, Estimate]
    text_to_image: dict[int, Estimate]
    tied_images: int | None = None
    """Number of images whose nearest own text is as near as another's. None in documents of version 3 and earlier."""
    tied_texts: int | None = None


class CompositionalScores(Config):
    """Scores as fractions of the samples. A score is None if there is only one item to choose from."""

    samples: int
    text: Estimate | None
    """Each image is nearest to its own text."""
    image: Estimate | None
    """Each text is nearest to its own image."""
    group: Estimate | None
    """Both."""


class CompositionalChance(Config):
    """Scores of random similarities."""

    text: float | None
    image: float | None
    group: float | None


Measure = Literal["text", "image", "group"]
Side = Literal["image side", "text side", "projection"]


class Loss(Config):
    """Where choices get lost: those that a model makes, beside those that linear probes of its features allow.

    Each score is the same share of samples.
    """

    samples: int
    chance: float
    model: Estimate
    image: Estimate
    """By what probes find in the images, and what the texts are known to say."""
    text: Estimate
    """By what probes find in the texts, and what the images are known to show."""
    both: Estimate
    """By what probes find in images and texts (late fusion)."""
    projection: Estimate
    """`both` minus `model`, on the same samples."""

    @property
    def beats_probes(self) -> bool:
        """Whether the model is above chance and gets more right than the probes, so that they do not bound it."""
        return self.projection.high < 0 and self.model.low > self.chance

    @property
    def where(self) -> tuple[Side, ...]:
        """Where most is lost: several if their 95 % intervals overlap that of the largest loss. () if nothing is, or if
        the model beats the probes."""
        if self.beats_probes:
            return ()
        lost: dict[Side, tuple[float, float, float]] = {
            "image side": (1 - self.image.value, 1 - self.image.high, 1 - self.image.low),
            "text side": (1 - self.text.value, 1 - self.text.high, 1 - self.text.low),
        }
        if self.projection.low > 0:
            lost["projection"] = (self.projection.value, self.projection.low, self.projection.high)
        most = max(lost.values())
        return tuple(side for side, (value, _, high) in lost.items() if value > 0 and high >= most[1])

    @property
    def statement(self) -> str:
        """One sentence with the numbers."""
        verdict = f"most is lost in the {' and the '.join(self.where)}" if self.where else "nothing is lost"
        if self.beats_probes:
            verdict = "linear probes find less than the model uses, so they do not tell where the rest is lost"
        low, high = (100 * value for value in (self.projection.low, self.projection.high))
        gap = f"{100 * self.projection.value:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
        return (
            f"{verdict}: the model gets {self.model.value:.1%} (chance {self.chance:.1%}), probes of the images alone "
            f"{self.image.value:.1%}, of the texts alone {self.text.value:.1%}, of both {self.both.value:.1%} "
            f"(both minus model: {gap})"
        )


class AttributeAccuracy(Config):
    """Accuracy of the linear probes of an attribute, on held-out items that have it."""

    values: int
    image: Estimate | None
    """None if no image has the attribute."""
    text: Estimate | None


class Ceiling(Config):
    """Choices by the attributes that linear probes find in the frozen features (see `tasks.ceiling`)."""

    measure: Measure
    """The score: the strictest of those that the samples have. Only samples that attributes tell apart count."""
    folds: int
    seed: int
    attributes: dict[str, AttributeAccuracy]
    total: Loss
    by_kind: dict[str, Loss]

    @property
    def losses(self) -> dict[str, Loss]:
        """All samples together, then by kind of change."""
        return {"all": self.total, **self.by_kind}


class CompositionalResult(_Result):
    """Choices between few images and texts that differ in one respect."""

    images_of_sample: int
    texts_of_sample: int
    total: CompositionalScores
    chance: CompositionalChance
    by_kind: dict[str, CompositionalScores]
    """By kind of change; empty if samples have no kinds."""
    tied: int
    """Number of samples with an own item that is as near as a wrong one."""
    ceiling: Ceiling | None = None
    """None without attributes of images and texts, and in documents of version 7 and earlier."""


class FeatureSetUse(Config):
    """A feature set that was scored."""

    path: str
    """Below the folder of features: data set, split, modality, and encoder with the hash of its settings."""
    digest: str


class BenchmarkRequest(Config):
    """What a score on a benchmark was measured with. Equal requests have equal scores."""

    name: str
    language: str | None = None
    """None for a task of frozen features, as `model` and `texts`."""
    frozen: FrozenTask | None = None
    """The task, if it is one of frozen features."""
    ties: Ties
    recall_at: tuple[int, ...]
    """() for tasks other than retrieval."""
    model: str | None = None
    """SHA-256 of `checkpoint.json`, or of an official checkpoint."""
    images: FeatureSetUse
    training_images: FeatureSetUse | None = None
    """Those of a task of frozen features."""
    texts: FeatureSetUse | None = None
    preprocessing: dict[str, Any]
    """That of the images: size, resizing, crop and interpolation."""
    class_digest: str | None = None
    """SHA-256 of the class names (see `names.digest`). None if there are no classes, as `template_digest`."""
    template_digest: str | None = None
    truth_digest: str | None = None
    """SHA-256 of what is right: the classes of labels, the labels of images, or the examples. None in retrieval, where
    captions belong to the images that they name."""

    @property
    def part(self) -> str:
        """The language, or the task of frozen features: a benchmark has one record of each."""
        return self.frozen or self.language or ""

    @property
    def title(self) -> str:
        """The benchmark, and the language of its texts."""
        return f"{self.name} ({self.language})" if self.language else self.name


class _Record(Config):
    """Fields of every record."""

    benchmark: BenchmarkRequest | None = None
    """None for a split of the run's own data, and in documents of version 4 and earlier."""
    software: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that scored a benchmark."""

    dataset: str | None = None
    """None in documents of versions 1 and 2."""
    split: str
    model_step: int | None = None
    """Training step of the checkpoint. None for frozen features."""
    notes: tuple[str, ...] = ()
    """Remarks that a reader of the numbers needs."""
    examples: tuple[Example, ...] = ()


class ZeroShotRecord(_Record):
    """Zero-shot classification among one set of candidate classes."""

    title: ClassVar[str] = "zero-shot classification"
    task: Literal["zero_shot_classification"] = "zero_shot_classification"
    templates: tuple[str, ...]
    """() if captions are the classes, or texts of a file describe them."""
    language: str | None = None
    """Language of the captions that are the classes, from the table of translations. None in documents of version 5 and
    earlier, and for named classes."""
    result: ZeroShotResult


class GeneralisedRecord(_Record):
    """Zero-shot classification of the unseen classes of a split of concepts, alone and together with the seen ones."""

    title: ClassVar[str] = "unseen classes"
    task: Literal["generalised_zero_shot"] = "generalised_zero_shot"
    templates: tuple[str, ...]
    """() if the texts of classes are from a file."""
    concepts: str
    """Hash of the split of concepts."""
    result: GeneralisedResult


class RetrievalRecord(_Record):
    """Image-text retrieval in both directions."""

    title: ClassVar[str] = "retrieval"
    task: Literal["retrieval"] = "retrieval"
    language: str | None = None
    """Language of the captions, from the table of translations; None: the captions of the split itself."""
    result: RetrievalResult


class NeighboursRecord(_Record):
    """Classification of frozen vision features by their nearest neighbours."""

    title: ClassVar[str] = "k-nearest-neighbour classification"
    task: Literal["nearest_neighbours"] = "nearest_neighbours"
    result: NeighboursResult


class ProbeRecord(_Record):
    """Linear probe of frozen vision features."""

    title: ClassVar[str] = "linear probe"
    task: Literal["linear_probe"] = "linear_probe"
    result: ProbeResult


class MultiLabelRecord(_Record):
    """Zero-shot classification of images that have several classes."""

    title: ClassVar[str] = "multi-label classification"
    task: Literal["multi_label_classification"] = "multi_label_classification"
    templates: tuple[str, ...]
    result: MultiLabelResult


class AnyLabelRecord(_Record):
    """Zero-shot classification of images of which any of several classes is right."""

    title: ClassVar[str] = "zero-shot classification, any right label"
    task: Literal["any_label_classification"] = "any_label_classification"
    templates: tuple[str, ...]
    result: AnyLabelResult


class CompositionalRecord(_Record):
    """Choices between images and texts that differ in one respect."""

    title: ClassVar[str] = "compositional choice"
    task: Literal["compositional"] = "compositional"
    language: str | None = None
    result: CompositionalResult


EvaluationRecord = Annotated[
    ZeroShotRecord
    | GeneralisedRecord
    | RetrievalRecord
    | NeighboursRecord
    | ProbeRecord
    | MultiLabelRecord
    | AnyLabelRecord
    | CompositionalRecord,
    Field(discriminator="task"),
]


def language_of(record: EvaluationRecord) -> str | None:
    """The language of a record; None: that of the split itself, or no texts are compared."""
    return record.benchmark.language if record.benchmark else getattr(record, "language", None)


class Score(Config):
    """A number by which models are compared."""

    measure: str
    value: Estimate
    chance: float | None


def scores(record: EvaluationRecord) -> list[Score]:
    """The main scores of a record, of all measures that the task has."""
    match record:
        case RetrievalRecord(result=found):
            return [
                Score(measure=f"{name} recall@{k}", value=value, chance=(chance or {}).get(k))
                for name, recalls, chance in (
                    ("image to text", found.image_to_text, found.chance_image_to_text),
                    ("text to image", found.text_to_image, found.chance_text_to_image),
                )
                for k, value in recalls.items()
            ]
        case CompositionalRecord(result=found):
            return [
                Score(measure=f"{name} score", value=value, chance=getattr(found.chance, name))
                for name in ("text", "image", "group")
                if (value := getattr(found.total, name)) is not None
            ]
        case GeneralisedRecord(result=found):
            unseen = Score(measure="unseen mean per class", value=found.zero_shot, chance=found.chance)
            if found.generalised is None:
                return [unseen]
            without, calibrated = found.generalised.uncalibrated, found.generalised.calibrated
            more = {
                "seen among all": without.seen,
                "unseen among all": without.unseen,
                "harmonic mean": without.harmonic_mean,
                **({"calibrated harmonic mean": calibrated.harmonic_mean} if calibrated else {}),
                "AUSUC": found.generalised.area,
            }
            return [unseen, *(Score(measure=name, value=value, chance=None) for name, value in more.items())]
        case MultiLabelRecord(result=found):
            return [Score(measure="mean average precision", value=found.mean_average_precision, chance=found.chance)]
        case NeighboursRecord(result=found) | ProbeRecord(result=found):
            return [Score(measure=f"{record.title}, top-1", value=found.top_1, chance=found.chance)]
        case _:
            return [Score(measure="top-1", value=record.result.top_1, chance=record.result.chance)]


def all_notes(records: Iterable[EvaluationRecord], notes: Iterable[str]) -> list[str]:
    """Collects the notes of records and those of the whole evaluation, each once."""
    return list(dict.fromkeys([*(note for record in records for note in record.notes), *notes]))


def upgraded(content: Any) -> Any:
    """Converts the content of `evaluation.json` of versions 1 and 2, whose one `result` held every task.

    Content of another form is returned as it is, for validation to refuse.
    """
    match content:
        case {
            "result": {
                "split": split,
                "model_step": step,
                "templates": templates,
                "retrieval": retrieval,
                "zero_shot": zero_shot,
                "examples": examples,
                **more,
            },
            **rest,
        } if more.keys() <= {"notes"}:
            records: list[dict[str, Any]] = []
            match zero_shot:
                case None:
                    pass
                case {"among_present": {**present}, "among_all": {**every}}:
                    named = [("all", every)] if present == every else [("present", present), ("all", every)]
                    records += [
                        {
                            "task": "zero_shot_classification",
                            "templates": templates,
                            "result": {"candidate_set": candidate_set, **result},
                        }
                        for candidate_set, result in named
                    ]
                case _:
                    return content
            if retrieval is not None:
                records.append({"task": "retrieval", "result": retrieval})
            records = [{"split": split, "model_step": step, **record} for record in records]
            if records:
                records[0]["examples"] = examples
            return {**rest, "records": records, "notes": more.get("notes", ())}
    return content
