"""Schema of a recipe: the settings of all stages."""

import difflib
import fnmatch
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sharelock_ray import storage
from sharelock_ray.alignment.prompts import DEFAULT_TEMPLATES, checked_templates
from sharelock_ray.alignment.spec import AlignmentSpec
from sharelock_ray.config import Config
from sharelock_ray.encoders.presets import name_of, written_out
from sharelock_ray.encoders.spec import EncoderSpec, LanguageSpec, VisionSpec
from sharelock_ray.engine.extraction_options import ExtractionOptions
from sharelock_ray.engine.training_options import TrainingOptions
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.benchmark import placed_name
from sharelock_ray.evaluation.result import FrozenTask, Ties
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.sources.content import read_lines
from sharelock_ray.sources.spec import SourceSpec
from sharelock_ray.sources.webdataset import WebDatasetSource
from sharelock_ray.storage import Uri
from sharelock_ray.study.spec import TuningSpec

DATASET = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of data sets."""
TEMPLATES = "templates"
"""The texts of classes that are their names in the templates of the evaluation."""
_Spec = TypeVar("_Spec", VisionSpec, LanguageSpec)


class ShapesSpec(Config):
    """Built-in data: coloured shapes, rendered into tars from a seed (see `demo.shapes`)."""

    seed: Annotated[int, Field(ge=0)] = 0
    train_images: Annotated[int, Field(ge=8)] = 2400
    test_images_per_class: Annotated[int, Field(ge=1)] = 20
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    shards: Annotated[int, Field(ge=1)] = 4
    objects: Literal[1, 2] = 1
    """Objects of a scene. With two, the data has tests of compositional choice (see `demo.scenes`)."""
    choices: Annotated[int, Field(ge=8)] = 400
    """Examples of each kind of compositional choice, for scenes of two objects."""

    @model_validator(mode="after")
    def _choices_need_two_objects(self) -> Self:
        if self.objects == 1 and self.choices != ShapesSpec.model_fields["choices"].default:
            raise ValueError("`choices` has an effect with `objects: 2` only: set that too")
        return self


def _from_path(given: Any) -> Any:
    return {"split": given} if isinstance(given, str) else given


class ConceptsSpec(Config):
    """A split of concepts, which `sharelock concepts split` makes: training is without the unseen classes."""

    split: Uri
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the seen classes that are not trained on either, but calibrate seen against unseen classes in
    generalised classification; chosen by a hash of their names. With 0, there is no calibration."""
    removed: Uri | None = None
    """A Parquet file with the keys of images, and the `caption_id` of captions, that are not trained on."""


class DataSpec(Config):
    """Data of a run: your own sources, or the built-in shapes."""

    dataset: Annotated[str, Field(pattern=DATASET)]
    """Name of the dataset, and of its folder of feature sets."""
    train: SourceSpec | None = None
    test: SourceSpec | None = None
    """Split for evaluation; without it, retrieval is scored on the validation pairs."""
    classes: Uri | None = None
    """A text file with one class name per line, in the order of the test split's labels."""
    class_texts: Annotated[Literal["templates"] | Uri | None, Field(union_mode="left_to_right")] = None
    """Trains on texts of the classes of labelled images in place of captions, and classifies by them: those of
    `evaluation.templates`, or descriptions in a file (see `sources.prompts`)."""
    concepts: Annotated[ConceptsSpec, BeforeValidator(_from_path)] | None = None
    """A split of concepts by which classes are left out of the training, or its settings."""
    shapes: ShapesSpec | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.shapes is None) == (self.train is None):
            raise ValueError("set either `train` or `shapes`, the origin of the data")
        return self

    @model_validator(mode="after")
    def _classes_have_names(self) -> Self:
        for field in ("class_texts", "concepts"):
            if getattr(self, field) is not None and self.classes is None and self.shapes is None:
                raise ValueError(f"`{field}` needs `classes`, the names of the labels")
        return self


class AlignmentOfPair(AlignmentSpec):
    """Settings of an alignment, and the pair of encoders that it aligns."""

    pair: tuple[str, str] | None = None
    """Names of the vision and the language encoder; optional if there is one of each."""


class TranslationsSpec(Config):
    """Captions of the test images in several languages, for retrieval in each."""

    table: Uri
    """A Parquet file with the columns `key` (the key of the image's row), `language` and `caption`."""
    languages: tuple[str, ...] = ()
    """Languages to score; () scores all."""


class BenchmarkSpec(Config):
    """Where a benchmark is, and what is asked of it."""

    folder: Uri
    """The folder of its images."""
    languages: tuple[str, ...] | Literal["all"] = ()
    """Languages to score; () is English, or the benchmark's first language if it has no English."""
    ties: Ties = "strict"
    frozen: tuple[FrozenTask, ...] = ()
    """Classifications of its frozen vision features by those of its training images."""
    attributes: Uri | None = None
    """What images and captions of a compositional benchmark show and say (see `evaluation.attributes`), in place of
    the benchmark's own table."""


class EvaluationSpec(Config):
    """Metrics, class prompts and further captions of the evaluation, and the benchmarks."""

    templates: Annotated[tuple[str, ...], AfterValidator(checked_templates)] = DEFAULT_TEMPLATES
    """Prompts with one `{}` for the class name; their embeddings are averaged."""
    recall_at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5, 10)
    translations: TranslationsSpec | None = None
    benchmarks: dict[Annotated[str, AfterValidator(placed_name)], BenchmarkSpec] = Field(default_factory=dict)
    """By name, or by path of your own file (see `sharelock benchmarks`)."""
    model: Uri | None = None
    """The model to score in place of this run's: a checkpoint folder, or a `.ckpt` of the official ShareLock code. The
    recipe's encoders must be those that it was trained on."""


class Operations(Config):
    """Use of the cluster. These settings change results by rounding only."""

    extraction: ExtractionOptions = ExtractionOptions()
    training: TrainingOptions = TrainingOptions()


class Recipe(Config):
    """Description of a run, from data to report."""

    name: str
    output: Uri
    """Folder of features, checkpoints, results and report: a local path or a URI."""
    features_of: Uri | None = None
    """Output folder of another run with the features and built-in data to use; None: this run's `output`."""
    note: str = ""
    """Remark for readers, shown in the report."""
    data: DataSpec
    encoders: Annotated[tuple[EncoderSpec, ...], Field(min_length=2)]
    """A list of poolings or layers of an encoder stands for an encoder with each."""
    alignment: AlignmentOfPair = AlignmentOfPair()
    evaluation: EvaluationSpec = EvaluationSpec()
    tuning: TuningSpec | None = None
    operations: Operations = Operations()

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, content: Any) -> Any:
        """Writes out lists of poolings and layers, and patterns of encoders' names in the space of a study."""
        if not isinstance(content, dict) or not isinstance(content.get("encoders"), list | tuple):
            return content
        encoders = [each for given in content["encoders"] for each in written_out(given)]
        content = content | {"encoders": encoders}
        tuning = content.get("tuning")
        if not isinstance(tuning, dict) or not isinstance(tuning.get("space"), dict):
            return content
        space = dict(tuning["space"])
        for modality in ("vision", "language"):
            if isinstance(given := space.get(modality), str | list):
                names = [name for each in encoders if (name := name_of(each, modality))]
                wanted = [given] if isinstance(given, str) else given
                space[modality] = [name for each in wanted for name in fnmatch.filter(names, str(each)) or [each]]
        return content | {"tuning": tuning | {"space": space}}

    @model_validator(mode="after")
    def _streams_in_order(self) -> Self:
        if self.operations.training.stream and self.alignment.order != "parts":
            raise ValueError("`operations.training.stream` requires `alignment.order: parts`: set that too")
        return self

    @model_validator(mode="after")
    def _positives_of_class_texts(self) -> Self:
        # As negatives of each other, images of one class would push away their own text.
        if self.data.class_texts is not None and "positives" not in self.alignment.model_fields_set:
            raise ValueError("with `data.class_texts`, images share texts: set `alignment.positives`, such as to label")
        return self

    @model_validator(mode="after")
    def _pair_is_there(self) -> Self:
        if self.alignment.pair is not None:
            _ = self.vision, self.language
        return self

    @model_validator(mode="after")
    def _matched_are_there(self) -> Self:
        if self.tuning is None:
            return self
        models = {each.model for each in self.studied.values()}
        for model in dict.fromkeys(model for pair in self.tuning.matched for model in pair):
            if model not in models:
                near = difflib.get_close_matches(model, models, n=1, cutoff=0)
                hint = f": did you mean {near[0]}?" if near else ""
                raise ValueError(f"`tuning.matched` names the model {model}, which no encoder of the study has{hint}")
        return self

    @property
    def studied(self) -> dict[str, LanguageSpec]:
        """The language encoders that the study compares, by name."""
        axis = self.tuning.space.get("language") if self.tuning else None
        named = axis if isinstance(axis, tuple) else ()
        return {each.name: each for each in self.encoders if isinstance(each, LanguageSpec) and each.name in named}

    @property
    def vision(self) -> VisionSpec:
        """The aligned vision encoder."""
        return self._aligned(VisionSpec, 0)

    @property
    def language(self) -> LanguageSpec:
        """The aligned language encoder."""
        return self._aligned(LanguageSpec, 1)

    @property
    def training(self) -> AlignmentSpec:
        """Settings of the training without `pair`, since its feature sets identify the encoders."""
        return AlignmentSpec.model_validate(self.alignment.model_dump(exclude={"pair"}))

    def _aligned(self, kind: type[_Spec], side: int) -> _Spec:
        """The encoder of a kind named by `alignment.pair`, or the only one.

        Raises:
            RequestError: the name is unknown or ambiguous, or `pair` is missing although there are several.
        """
        encoders = [encoder for encoder in self.encoders if isinstance(encoder, kind)]
        modality, names = kind.model_fields["modality"].default, [encoder.name for encoder in encoders]
        pair = self.alignment.pair
        if pair is not None:
            encoders = [encoder for encoder in encoders if encoder.name == pair[side]]
            if len(encoders) != 1:
                raise RequestError(
                    f"`alignment.pair` names the {modality} encoder {pair[side]}, but `encoders` has "
                    f"{len(encoders) or 'none'} of that name: its {modality} encoders are {', '.join(names) or 'none'}"
                )
        elif len(encoders) != 1:
            raise RequestError(
                f"`encoders` lists {len(encoders)} {modality} encoders ({', '.join(names) or 'none'}), and one must "
                f"be selected: set `alignment.pair: [<vision name>, <language name>]`"
            )
        return encoders[0]

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.output)

    @property
    def data_folder(self) -> str:
        """Folder of the built-in data."""
        return storage.join(self.features_of or self.output, "data")

    @property
    def features_folder(self) -> str:
        return storage.join(self.features_of or self.output, "features")

    @property
    def splits(self) -> dict[str, SourceSpec]:
        """Sources by split."""
        if self.data.shapes is not None:
            folder = storage.escape(self.data_folder)
            return {split: WebDatasetSource(urls=f"{folder}/{split}/*.tar") for split in ("train", "test")}
        named = {"train": self.data.train, "test": self.data.test}
        return {split: source for split, source in named.items() if source is not None}

    def class_names(self) -> list[str] | None:
        """Class names by label; None if the recipe has none, or its built-in data is not written yet.

        Raises:
            RequestError: the file is missing or not UTF-8, or a line before the last is empty.
        """
        path = storage.join(self.data_folder, "classes.txt") if self.data.shapes else self.data.classes
        if path is None or (self.data.shapes and not storage.exists(path)):
            return None
        names = read_lines(path, "class names")
        if not all(name.strip() for name in names):
            number = next(number for number, name in enumerate(names, 1) if not name.strip())
            raise RequestError(f"{path}: line {number:,} is empty, and each line must name a class")
        return names
