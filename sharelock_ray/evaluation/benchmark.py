"""Benchmarks as data: what is measured on which images, with which names and templates, and under which licence.

The shipped ones are the files of `benchmarks/`; a user's own file works by its path.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from sharelock_ray import storage
from sharelock_ray.alignment.prompts import TemplateError, checked_templates
from sharelock_ray.config import Config, explain
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.attributes import Attributes, read_attributes
from sharelock_ray.evaluation.boxes import BoxImages
from sharelock_ray.evaluation.choices import Choice, Choices, read_choices
from sharelock_ray.evaluation.names import (
    FOLDER,
    IndexList,
    ListUri,
    NameList,
    checked_names,
    in_folder,
    read_image_labels,
    read_list,
)
from sharelock_ray.sources.content import read_yaml
from sharelock_ray.sources.folders import ClassFolderSource
from sharelock_ray.sources.listing import IMAGE_EXTENSIONS
from sharelock_ray.sources.lists import ListSource
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, LABELS, Content, Reject, Sample, Shard, Source
from sharelock_ray.sources.spec import SourceSpec

SHIPPED = Path(__file__).parent / "benchmarks"
_ENDINGS = (".yaml", ".yml")

Task = Literal[
    "zero_shot_classification",
    "multi_label_classification",
    "retrieval",
    "two_images_two_captions",
    "one_image_many_captions",
]
Metric = Literal[
    "top_1",
    "top_5",
    "mean_per_class",
    "mean_average_precision",
    "image_to_text",
    "text_to_image",
    "text",
    "image",
    "group",
]
# Fields that some tasks have only; a task except retrieval needs its first.
_OF_CLASSES = ("templates", "classes", "folders", "mask", "labels", "image_labels", "lower", "class_count")
_FIELDS: dict[Task, tuple[str, ...]] = {
    "zero_shot_classification": (*_OF_CLASSES, "train_images"),
    "multi_label_classification": _OF_CLASSES,
    "retrieval": ("translations",),
    "two_images_two_captions": ("choices", "attributes"),
    "one_image_many_captions": ("choices", "attributes"),
}


@dataclass(frozen=True)
class Classes:
    """The classes of a benchmark in one language.

    Args:
        names: (C,) in the order of the classes.
        labels: (C,) label of each class in the source; None: label n is class n.
        folders: class folder of each label; None: sorted class folders are in label order, numbers by value.
        other_folders: class folders that are known, and whose images are left out.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    folders: tuple[str, ...] | None = None
    other_folders: frozenset[str] = frozenset()

    def of_labels(self, found: Sequence[str] | None, place: str) -> dict[int, int]:
        """The class of each label; images with other labels are left out.

        Args:
            found: the class folders, in the order of their labels. None if images are not in class folders.
            place: that of the images, for errors.

        Raises:
            RequestError: a class folder is unknown, or there are more or fewer than classes.
        """
        of_label = {label: index for index, label in enumerate(self.labels or range(len(self.names)))}
        if found is None:
            return of_label
        folders = self.folders
        if folders is None:
            # As text, 10 comes before 2.
            folders = tuple(sorted(found, key=int) if all(name.isdecimal() for name in found) else found)
            if self.labels is None and len(folders) != len(self.names):
                raise RequestError(
                    f"{place} holds {len(folders):,} class folders for {len(self.names):,} class names: "
                    f"each class needs one of each"
                )
        label_of = {name: label for label, name in enumerate(folders)}
        for name in found:
            if name not in label_of and name not in self.other_folders:
                raise RequestError(
                    f"{place} holds the folder {name!r}, which is no class: "
                    f"the class folders are {', '.join(folders[:3])}, …"
                )
        labels = (label_of.get(name, -1) for name in found)
        return {index: of_label[label] for index, label in enumerate(labels) if label in of_label}


class Benchmark(Config):
    """A benchmark. Its name is that of its file."""

    title: str
    task: Task
    images: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """Layouts of the images, with paths that start with `folder://`; the first that is there is read."""
    train_images: Annotated[tuple[SourceSpec, ...], Field(min_length=1)] | None = None
    """Layouts of the training images, for tasks of frozen features; the first that is there is read."""
    images_of: str | None = None
    """Name of another benchmark with these images, which share its features. None: no other has them."""
    classes: NameList | None = None
    """Class names in label order. None: the lines of `classnames.txt` in the folder of the images, or, without it, the
    names of the class folders with spaces for `_`."""
    folders: IndexList | None = None
    """Class folder of each entry of `classes`. None: sorted class folders are in label order, numbers by value."""
    mask: IndexList | None = None
    """The entries of `classes` that are classes of the benchmark: their positions, folders or names. Labels of images
    count these classes only."""
    labels: IndexList | None = None
    """Labels of the classes, if not all labels are classes; images with other labels are left out."""
    image_labels: ListUri | None = None
    """The labels that are right for an image, in place of its own, by file name: a JSON object, or `timm://real`."""
    lower: bool = False
    """Whether names are put into small letters."""
    class_count: Annotated[int, Field(ge=1)] | None = None
    templates: NameList | None = None
    """Prompts with `{}`, or `{c}` as in CLIP-Benchmark, for the class name."""
    translations: storage.Uri | None = None
    """Captions of retrieval in several languages: Parquet with the columns `key`, `language` and `caption`."""
    choices: Choices | None = None
    """The examples of a compositional benchmark."""
    attributes: storage.Uri | None = None
    """What its images and captions show and say, for the ceiling of frozen features: Parquet (see
    `evaluation.attributes`)."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """ISO 639 codes of the texts."""
    metrics: Annotated[dict[Metric, float | None], Field(min_length=1)]
    """Each metric with its chance level, the main one first. None: it depends on the number of classes or texts."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Number of images, or of examples of a compositional benchmark."""
    licence: str | None = None
    """Licence of images, texts and labels, as far as it is known."""
    citation: str | None = None
    note: str | None = None
    """What else a user must know, such as how to prepare the images."""

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        own = _FIELDS[self.task]
        if self.task != "retrieval" and getattr(self, own[0]) is None:
            raise ValueError(f"the task {self.task} needs `{own[0]}`")
        for field in sorted({field for fields in _FIELDS.values() for field in fields}.difference(own)):
            if field in self.model_fields_set:
                raise ValueError(f"the task {self.task} has no `{field}`")
        if self.train_images and self.image_labels:
            raise ValueError("`train_images` need one label per image: take them or `image_labels` away")
        return self

    def lists(self) -> tuple[object, ...]:
        """Where names, templates and labels are."""
        return self.classes, self.templates, self.folders, self.mask, self.labels

    @property
    def names_in_folder(self) -> bool:
        """Whether the class names are in the folder of the images."""
        return self.classes is None or (isinstance(self.classes, str) and self.classes.startswith(FOLDER))

    def source(self, folder: str, training: bool = False) -> Source:
        """The images in `folder`, or the training images.

        Raises:
            RequestError: none of the layouts is there.
        """
        sources = [_in_folder(spec, folder) for spec in (self.train_images or () if training else self.images)]
        found = next(filter(_is_there, sources), None)
        if found is None:
            kind = "training images" if training else "images"
            places = " or ".join(place for source in sources for place in _places(source))
            raise RequestError(f"there are no {kind} of {self.title} in {folder}: they are expected at {places}")
        return found

    def require_training(self) -> None:
        """Raises RequestError if the benchmark cannot have tasks of frozen features."""
        if self.train_images is None:
            single = self.task == "zero_shot_classification" and self.image_labels is None
            why = "names no `train_images`" if single else "is no classification with one label per image"
            raise RequestError(f"{self.title} {why}, which `frozen` needs: take `frozen` away")

    def chosen(self, languages: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
        """The languages to score; of () English, or the first.

        Raises:
            RequestError: a language is unknown.
        """
        if languages == "all":
            return self.languages
        return tuple(map(self._known, languages)) or ("en" if "en" in self.languages else self.languages[0],)

    def classes_in(self, language: str | None = None, folder: str | None = None) -> Classes:
        """The classes in a language.

        Args:
            language: None is the first.
            folder: that of the images, which holds the lists of some benchmarks.

        Raises:
            RequestError: a list cannot be read or is empty, a class has no name, the number of names is not that of the
                classes, or the mask names an entry that does not exist.
        """
        language = self._known(language)
        names = self._all_names(language, folder)
        folders = None if self.folders is None else read_list(self.folders, "class folders", language, folder)
        if folders is not None and self.mask is not None and len(folders) != len(names):
            raise RequestError(f"{self.title} has {len(names):,} class names for {len(folders):,} class folders")
        every = frozenset(folders or ())
        if self.mask is not None:
            kept = self._positions(read_list(self.mask, "mask", language, folder), names, folders or [])
            names = [names[index] for index in kept]
            folders = None if folders is None else [folders[index] for index in kept]
        labels = None if self.labels is None else read_list(self.labels, "labels", language, folder)
        count = self.class_count if labels is None else len(labels)
        checked = checked_names(names, self.title, count)
        return Classes(
            tuple(name.lower() for name in checked) if self.lower else checked,
            None if labels is None else tuple(labels),
            None if folders is None else tuple(folders),
            every.difference(folders or ()),
        )

    def templates_in(self, language: str | None = None, folder: str | None = None) -> tuple[str, ...]:
        """The templates in a language, each with one `{}`.

        Args:
            language: None is the first.

        Raises:
            RequestError: the list cannot be read or is empty, or a template has no `{}` or other braces.
        """
        if self.templates is None:
            raise RequestError(f"{self.title} has no templates: its task is {self.task}")
        found = read_list(self.templates, "templates", self._known(language), folder)
        try:
            return checked_templates([str(template).replace("{c}", "{}") for template in found])
        except TemplateError as error:
            raise RequestError(f"{self.title}: {error}") from None

    def labels_of_images(self, keys: Iterable[str], folder: str | None = None) -> list[tuple[int, ...]]:
        """The right labels of each image, by the file name at the end of its key; () if none is known.

        Raises:
            RequestError: the benchmark has one label per image, or knows none of the images.
        """
        if self.image_labels is None:
            raise RequestError(f"{self.title} has one label per image, that of its class")
        known = read_image_labels(in_folder(self.image_labels, folder, "labels of images"))
        found = [tuple(known.get(key.rpartition("/")[2], ())) for key in keys]
        if not any(found):
            raise RequestError(f"{self.title} knows none of the images: keep the file names of the original set")
        return found

    def choices_in(self, folder: str) -> list[Choice]:
        """The examples of a compositional benchmark; raises as `read_choices`."""
        if self.choices is None:
            raise RequestError(f"{self.title} has no examples: its task is {self.task}")
        placed = self.choices.model_copy(update={"file": in_folder(self.choices.file, folder, "examples")})
        return read_choices(placed, images=2 if self.task == "two_images_two_captions" else 1)

    def attributes_in(self, folder: str) -> Attributes | None:
        """What images and captions show and say; None if the benchmark does not tell. Raises as `read_attributes`."""
        if self.attributes is None:
            return None
        return read_attributes(in_folder(self.attributes, folder, "attributes"))

    def _all_names(self, language: str, folder: str | None) -> list[Any]:
        """The names before the mask."""
        if self.classes is not None:
            return read_list(self.classes, "class names", language, folder)
        listed = in_folder(f"{FOLDER}classnames.txt", folder, "class names")
        if folder is None or storage.exists(listed):
            return read_list(listed, "class names")
        source = self.source(folder)
        if not isinstance(source, ClassFolderSource):
            raise RequestError(f"{self.title} has no class names: write one per line, in label order, to {listed}")
        return [shard.name.replace("_", " ") for shard in source.shards()]

    def _positions(self, mask: Sequence[Any], names: Sequence[Any], folders: Sequence[Any]) -> list[int]:
        """The entries that the mask names, in order."""
        places: dict[Any, int] = {index: index for index in range(len(names))}
        for entries in (names, folders):
            places |= {entry: index for index, entry in enumerate(entries)}
        unknown = [each for each in mask if each not in places]
        if unknown:
            raise RequestError(
                f"the mask of {self.title} names {unknown[0]!r}, which is none of its {len(names):,} entries"
            )
        return sorted({places[each] for each in mask})

    def _known(self, language: str | None) -> str:
        if language is not None and language not in self.languages:
            near = difflib.get_close_matches(language, self.languages, n=1, cutoff=0.0)[0]
            raise RequestError(f"{self.title} has no texts in {language!r}: did you mean `{near}`?")
        return language or self.languages[0]


@dataclass(frozen=True)
class BenchmarkImages:
    """The images of a benchmark in a folder, which is first looked at when they are listed or read.

    It provides what the task needs, so that no encoder runs over captions that are not there.
    """

    benchmark: Benchmark
    folder: str
    training: bool = False
    """Whether these are the training images."""

    @cached_property
    def _found(self) -> Source:
        found, choices = self.benchmark.source(self.folder, self.training), self.benchmark.choices
        if choices is None or choices.box is None:
            return found
        return BoxImages(found, tuple(key for each in self.benchmark.choices_in(self.folder) for key in each.images))

    @property
    def provides(self) -> frozenset[Content]:
        captioned = self.benchmark.task == "retrieval" and self.benchmark.translations is None
        return frozenset({IMAGES, CAPTIONS} if captioned else {IMAGES, LABELS})

    def shards(self) -> list[Shard]:
        """The listing; RequestError if there are no images."""
        return self._found.shards()

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """See `Source.read`."""
        return self._found.read(shard)

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """See `Source.keys_of`."""
        return self._found.keys_of(shard)

    def version(self, shard: Shard) -> str:
        """See `Source.version`."""
        return self._found.version(shard)


def shipped() -> list[str]:
    """Names of the shipped benchmarks, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_benchmark(name: str) -> Benchmark:
    """Reads a benchmark.

    Args:
        name: that of a shipped one, or the path or URI of a `.yaml` file.

    Raises:
        RequestError: there is none, or a field is invalid; the message names the nearest.
    """
    name = placed_name(name)
    place = name if name.endswith(_ENDINGS) else str(SHIPPED / f"{name}.yaml")
    try:
        return Benchmark.model_validate(read_yaml(place, "benchmark"))
    except ValidationError as error:
        raise RequestError(f"{place}: {explain(error, Benchmark)}") from None


def placed_name(name: str) -> str:
    """The name of a benchmark in a recipe: that of a shipped one, or the absolute path of a file.

    Raises:
        RequestError: there is no such benchmark; the message names the nearest.
    """
    if name.endswith(_ENDINGS):
        return storage.absolute(name)
    if name not in shipped():
        near = difflib.get_close_matches(name, shipped(), n=1, cutoff=0.0)[0]
        raise RequestError(
            f"there is no benchmark {name!r}: did you mean `{near}`? `sharelock benchmarks` lists all; "
            f"name your own by the path of its .yaml file"
        )
    return name


def check_labels(labels: Iterable[int], classes: int, place: str) -> None:
    """Raises RequestError if a label is not below the number of classes, so that its class has no name.

    Args:
        place: the benchmark, for errors.
    """
    outside = sorted({label for label in labels if not 0 <= label < classes})
    if outside:
        raise RequestError(
            f"{place} has images with the label {outside[0]:,}, and {classes:,} classes have names, from 0 on: "
            f"check that images and class names belong together"
        )


def _in_folder(spec: SourceSpec, folder: str) -> SourceSpec:
    """A layout with `folder` for `folder://`; in patterns, the folder's special characters are escaped."""

    def placed(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [placed(each, where) for each in value]
        return in_folder(value, where, "images") if isinstance(value, str) else value

    fields = spec.model_dump(mode="json")
    content = {name: placed(of, storage.escape(folder) if name == "urls" else folder) for name, of in fields.items()}
    source: SourceSpec = TypeAdapter(SourceSpec).validate_python(content)
    return source


def _places(source: SourceSpec) -> list[str]:
    """The path of a source's files, or its patterns."""
    if isinstance(source, ClassFolderSource):
        return [f"{source.path}/<class>/<image>"]
    places = source.path if isinstance(source, ListSource) else source.urls
    return [places] if isinstance(places, str) else list(places)


def _is_there(source: SourceSpec) -> bool:
    """Whether the first file of a pattern exists, or an image in a class folder."""
    if not isinstance(source, ClassFolderSource):
        return any(storage.exists(uri) for place in _places(source) for uri in storage.expand(place)[:1])
    found = storage.entries(source.path) if storage.is_folder(source.path) else {}
    folders = (storage.join(source.path, name) for name, size in found.items() if size is None and name[0] != ".")
    names = (name for folder in folders for name in storage.entries(folder))
    return any(name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS for name in names)
