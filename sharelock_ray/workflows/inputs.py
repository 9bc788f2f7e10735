"""Inputs of a command, resolved once: encoders, hashes of weights, listings, and URIs of feature sets."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Literal

from sharelock_ray import storage
from sharelock_ray.concepts.classes import ClassSides, class_sides
from sharelock_ray.concepts.split import ConceptSplit, read_split
from sharelock_ray.config import content_hash
from sharelock_ray.demo.scenes import write_scenes
from sharelock_ray.demo.shapes import write_shapes
from sharelock_ray.encoders.resolved import ResolvedEncoder, resolve
from sharelock_ray.encoders.spec import EncoderSpec, Modality
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.evaluation.benchmark import Benchmark, BenchmarkImages, read_benchmark
from sharelock_ray.evaluation.texts import texts_of
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import inputs_with_rejects, is_complete
from sharelock_ray.features.pairing import Pairing, Removed
from sharelock_ray.features.schema import feature_set_uri
from sharelock_ray.progress import say
from sharelock_ray.recipe.load import write_recipe
from sharelock_ray.recipe.schema import DATASET, TEMPLATES, BenchmarkSpec, Recipe
from sharelock_ray.sources.listed import Listed
from sharelock_ray.sources.prompts import ClassTextSource, PromptSource
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, Content, Source
from sharelock_ray.sources.spec import SourceSpec, require_captions
from sharelock_ray.sources.translations import TranslationSource
from sharelock_ray.workflows.timing import timed

_AnySource = SourceSpec | PromptSource | ClassTextSource | TranslationSource
_WRONG_NAME = {True: "that of another benchmark of the recipe", False: "no valid name of a folder"}
TEXTS = "texts"
"""The data set of the texts of benchmarks, which may share them."""
_WANTS: dict[Modality, Content] = {"vision": IMAGES, "language": CAPTIONS}
"""Content that an encoder needs from a source."""


@dataclass(frozen=True)
class Split:
    """A named split: its source, and the encoders that the source can feed."""

    dataset: str
    name: str
    title: str
    """Its name for users: `name` where the data set is the recipe's."""
    source: Listed
    encoders: tuple[ResolvedEncoder, ...]
    uris: tuple[str, ...]
    """The feature set of each of `encoders`."""

    def open(self) -> list[FeatureSet]:
        """Opens the feature sets; RequestError if one is incomplete."""
        return [open_features(uri) for uri in self.uris]


@dataclass(frozen=True)
class BenchmarkInputs:
    """A benchmark: its images, and its texts by language.

    Args:
        name: that of its records, and of its folder of feature sets.
        texts: the split of the images itself if its source has the captions.
        training: the training images; None unless a task of frozen features is asked for.
    """

    name: str
    spec: BenchmarkSpec
    benchmark: Benchmark
    images: Split
    texts: dict[str, Split]
    training: Split | None


class Inputs:
    """The encoders, splits and feature sets of a recipe; each is resolved on first use and cached."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._encoders: dict[EncoderSpec, ResolvedEncoder] = {}
        self._sources: dict[_AnySource, Listed] = {}

    def of(self, recipe: Recipe) -> "Inputs":
        """The inputs of another recipe, such as a point of a study; encoders and listings are shared."""
        inputs = Inputs(recipe)
        inputs._encoders, inputs._sources = self._encoders, self._sources
        return inputs

    def encoder(self, spec: EncoderSpec) -> ResolvedEncoder:
        """Resolves an encoder of the recipe."""
        if spec not in self._encoders:
            self._encoders[spec] = resolve(spec)
        return self._encoders[spec]

    def uri(self, split: str, spec: EncoderSpec, dataset: str | None = None) -> str:
        """URI of the feature set of one encoder over one split, by default of the recipe's data set."""
        encoder, dataset = self.encoder(spec), dataset or self.recipe.data.dataset
        return feature_set_uri(self.recipe.features_folder, dataset, split, encoder.modality, encoder.folder)

    def open(self, split: str, spec: EncoderSpec) -> FeatureSet:
        """Opens the feature set of one encoder over one split.

        Raises:
            RequestError: it is incomplete, or the split's source cannot feed the encoder.
        """
        source = self.recipe.splits.get(split)
        if source is not None and not _feeds(source, spec):
            raise RequestError(
                f"the {split} split has no {_WANTS[spec.modality]} for {spec.name}: its source ({source.format}) "
                f"provides {', '.join(sorted(source.provides))}"
            )
        return open_features(self.uri(split, spec))

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits of the recipe's data, by name."""
        return {name: self._split(name, source) for name, source in self.recipe.splits.items()}

    @cached_property
    def prompts(self) -> Split | None:
        """The texts of the classes as a split: prompts, or descriptions from `data.class_texts`; None if the recipe has
        no class names, or neither test images nor training on these texts.

        Raises:
            RequestError: the class names or texts cannot be read.
        """
        recipe, texts = self.recipe, self.recipe.data.class_texts
        is_tested = "test" in recipe.splits and IMAGES in recipe.splits["test"].provides
        names = recipe.class_names() if is_tested or texts is not None else None
        if not names:
            return None
        if texts is not None and texts != TEMPLATES:
            described = ClassTextSource.of_file(texts, names)
            return self._split(f"prompts-{content_hash(described)}", described)
        templates = recipe.evaluation.templates
        source = PromptSource(names=tuple(names), templates=templates)
        return self._split(f"prompts-{content_hash(names, templates)}", source)

    @cached_property
    def sides(self) -> ClassSides | None:
        """The classes on each side of the split of concepts; None without one.

        Raises:
            RequestError: it cannot be read, or is not of the classes of the recipe.
        """
        spec = self.recipe.data.concepts
        if spec is None:
            return None
        return class_sides(self._concepts, self.recipe.class_names() or (), spec.split, spec.validation_fraction)

    @cached_property
    def pairing(self) -> Pairing:
        """How the images and texts of the training are paired; raises as `sides`."""
        spec, sides = self.recipe.data.concepts, self.sides
        by: Literal["key", "label"] = "key" if self.recipe.data.class_texts is None else "label"
        if spec is None or sides is None:
            return Pairing(by=by)
        return Pairing(
            by=by,
            classes=sides.seen,
            class_count=len(self.recipe.class_names() or ()),
            removed=Removed.of(spec.removed) if spec.removed else None,
            concepts=self._concepts.hash8,
        )

    @cached_property
    def _concepts(self) -> ConceptSplit:
        assert self.recipe.data.concepts is not None, "a recipe without concepts"
        return read_split(self.recipe.data.concepts.split)

    @property
    def class_texts(self) -> Split | None:
        """The texts of the classes if they are trained on, in place of captions.

        Raises:
            RequestError: the classes have no names.
        """
        if self.recipe.data.class_texts is None:
            return None
        if self.prompts is None:
            raise RequestError("`data.class_texts` needs class names, and there are none: check `data.classes`")
        return self.prompts

    def training_uris(self) -> tuple[str, str]:
        """URIs of the vision and the language set that are trained on; raises as `class_texts`."""
        texts = "train" if self.class_texts is None else self.class_texts.name
        return self.uri("train", self.recipe.vision), self.uri(texts, self.recipe.language)

    @cached_property
    def translations(self) -> Split | None:
        """The captions in several languages as a split; None if the recipe has none or no test images.

        Raises:
            RequestError: their table cannot be read.
        """
        recipe = self.recipe
        spec = recipe.evaluation.translations
        if spec is None or "test" not in recipe.splits or IMAGES not in recipe.splits["test"].provides:
            return None
        source = TranslationSource.of_table(spec.table, spec.languages)
        return self._split(f"translations-{content_hash(source)}", source)

    @cached_property
    def benchmarks(self) -> list[BenchmarkInputs]:
        """The benchmarks of the recipe.

        Raises:
            RequestError: names, templates, captions or examples of one cannot be read, two have the same name, or one
                has no training images for a task that is asked for.
        """
        splits: dict[tuple[str, str], Split] = {}

        def once(dataset: str, name: str, title: str, source: Source) -> Split:
            """The split, which benchmarks share that have the same images or texts."""
            if (dataset, name) not in splits:
                splits[dataset, name] = self._fed(dataset, name, title, Listed(source))
            return splits[dataset, name]

        found: dict[str, BenchmarkInputs] = {}
        folders: dict[str, str] = {}
        for place, spec in self.recipe.evaluation.benchmarks.items():
            benchmark, name = read_benchmark(place), PurePath(place).stem if "/" in place else place
            if spec.attributes is not None:
                if benchmark.choices is None:
                    raise RequestError(f"{name} has no examples of compositional choice: take `attributes` away")
                benchmark = benchmark.model_copy(update={"attributes": spec.attributes})
            if name in found or not re.fullmatch(DATASET, name):
                raise RequestError(f"{place}: name the file otherwise: {name!r} is {_WRONG_NAME[name in found]}")
            dataset = benchmark.images_of or name
            if folders.setdefault(dataset, spec.folder) != spec.folder:
                raise RequestError(f"{name} has the images of another benchmark, {dataset}: give both the same folder")
            images = once(dataset, "test", f"{dataset} test", BenchmarkImages(benchmark, spec.folder))
            languages = benchmark.chosen(spec.languages)
            texts = {
                language: images if source is None else once(TEXTS, split, f"{name} {language} texts", source)
                for language, split, source in texts_of(benchmark, languages, spec.folder)
            }
            training = None
            if spec.frozen:
                benchmark.require_training()
                source = BenchmarkImages(benchmark, spec.folder, training=True)
                training = once(dataset, "train", f"{dataset} train", source)
            found[name] = BenchmarkInputs(name, spec, benchmark, images, texts, training)
        return list(found.values())

    @property
    def all_splits(self) -> list[Split]:
        """The splits of the data, the prompts, the translations, and the images and texts of benchmarks."""
        texts = [split for split in (self.prompts, self.translations) if split]
        return [*self.splits.values(), *texts, *_splits_of(self.benchmarks)]

    @property
    def known_splits(self) -> list[Split]:
        """As `all_splits`, but without texts and benchmarks that are not embedded yet, such as those of another
        evaluation."""
        others: list[Split] = []
        # Feature sets may outlive the files of class names and translations.
        with suppress(RequestError):
            others += [self.prompts] if self.prompts else []
        with suppress(RequestError):
            others += [self.translations] if self.translations else []
        with suppress(RequestError):
            others += _splits_of(self.benchmarks)
        return [*self.splits.values(), *(split for split in others if all(map(is_complete, split.uris)))]

    def _split(self, name: str, source: "_AnySource") -> Split:
        if source not in self._sources:
            self._sources[source] = Listed(source)
        return self._fed(self.recipe.data.dataset, name, name, self._sources[source])

    def _fed(self, dataset: str, name: str, title: str, source: Listed) -> Split:
        fed = [spec for spec in self.recipe.encoders if _feeds(source, spec)]
        uris = tuple(self.uri(name, spec, dataset) for spec in fed)
        return Split(dataset, name, title, source, tuple(map(self.encoder, fed)), uris)


def _splits_of(benchmarks: Sequence[BenchmarkInputs]) -> list[Split]:
    """Each split of the benchmarks once."""
    splits = [split for each in benchmarks for split in (each.images, each.training, *each.texts.values()) if split]
    return list({(split.dataset, split.name): split for split in splits}.values())


def _feeds(source: Source, spec: EncoderSpec) -> bool:
    return _WANTS[spec.modality] in source.provides


def prepare(recipe: Recipe) -> None:
    """Saves the resolved recipe, and writes the built-in data if the recipe uses it.

    Raises:
        RequestError: the class names, which evaluation needs, cannot be read.
    """
    if recipe.data.shapes is not None and not storage.exists(storage.join(recipe.data_folder, "shapes.json")):
        say(f"data: rendering coloured shapes into {recipe.data_folder}")
    with timed(recipe, "data"):
        if recipe.data.shapes is not None:
            shapes = recipe.data.shapes
            if shapes.objects == 1:
                write_shapes(recipe.data_folder, **shapes.model_dump(exclude={"objects", "choices"}))
            else:
                write_scenes(recipe.data_folder, **shapes.model_dump(exclude={"objects"}))
    recipe.class_names()
    write_recipe(recipe)


def check_inputs(splits: Sequence[Split]) -> None:
    """Raises RequestError if a source lists no inputs, or none that an encoder of the recipe takes."""
    for split in splits:
        shards = split.source.shards()
        if any(encoder.modality == "language" for encoder in split.encoders):
            require_captions(split.source.source, shards)
        if not split.encoders:
            provides = ", ".join(sorted(split.source.provides))
            raise RequestError(f"the {split.title} split provides {provides}, which no encoder of the recipe takes")


def refuse_other_inputs(source: Source, sets: Sequence[FeatureSet]) -> None:
    """Raises RequestError if a source's shards differ from those that the complete sets of its split were made from.

    Shards with rejects may have changed, since the user may have fixed them. If nothing can be listed, there is no
    check, since feature sets may outlive their inputs.
    """
    try:
        listed = source.shards() if sets else []
    except (SharelockError, OSError):
        return
    may_change = inputs_with_rejects(s.manifest for s in sets)
    for feature_set in sets if listed else ():
        for name, how in feature_set.manifest.other_inputs(listed, may_change).items():
            raise RequestError(
                f"{feature_set.uri} was made from other inputs than are listed now ({name} is {how}): "
                f"restore them, set another `output` or `data.dataset`, or delete that folder to extract again"
            )


def feature_sets(splits: Sequence[Split]) -> Iterator[FeatureSet]:
    """Opens the feature sets of splits; RequestError if one is incomplete."""
    return (feature_set for split in splits for feature_set in split.open())
