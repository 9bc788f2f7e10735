"""Inputs of a command, resolved once: encoders, hashes of weights, listings, and URIs of feature sets."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from sharelock_ray import storage
from sharelock_ray.alignment.prompts import prompts_of
from sharelock_ray.config import content_hash
from sharelock_ray.demo.shapes import write_shapes
from sharelock_ray.encoders.resolved import ResolvedEncoder, resolve
from sharelock_ray.encoders.spec import EncoderSpec, Modality
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import inputs_with_rejects, is_complete
from sharelock_ray.features.schema import feature_set_uri
from sharelock_ray.progress import say
from sharelock_ray.recipe.load import write_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.listed import Listed
from sharelock_ray.sources.prompts import PromptSource
from sharelock_ray.sources.sample import CAPTIONS, IMAGES, Content, Source
from sharelock_ray.sources.spec import SourceSpec, require_captions
from sharelock_ray.sources.translations import TranslationSource
from sharelock_ray.workflows.timing import timed

_AnySource = SourceSpec | PromptSource | TranslationSource
_WANTS: dict[Modality, Content] = {"vision": IMAGES, "language": CAPTIONS}
"""Content that an encoder needs from a source."""


@dataclass(frozen=True)
class Split:
    """A named split: its source, and the encoders that the source can feed."""

    name: str
    source: Listed
    encoders: tuple[ResolvedEncoder, ...]
    uris: tuple[str, ...]
    """The feature set of each of `encoders`."""

    def open(self) -> list[FeatureSet]:
        """Opens the feature sets; RequestError if one is incomplete."""
        return [open_features(uri) for uri in self.uris]


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

    def uri(self, split: str, spec: EncoderSpec) -> str:
        """URI of the feature set of one encoder over one split."""
        encoder = self.encoder(spec)
        recipe = self.recipe
        return feature_set_uri(recipe.features_folder, recipe.data.dataset, split, encoder.modality, encoder.folder)

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
        """The class prompts as a split; None if the recipe has no class names or no test images.

        Raises:
            RequestError: the class names cannot be read.
        """
        recipe = self.recipe
        names = recipe.class_names() if "test" in recipe.splits else None
        if not names or IMAGES not in recipe.splits["test"].provides:
            return None
        templates = recipe.evaluation.templates
        source = PromptSource(prompts=tuple(tuple(prompts_of(name, templates)) for name in names))
        return self._split(f"prompts-{content_hash(names, templates)}", source)

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

    @property
    def all_splits(self) -> list[Split]:
        """The splits of the data, the prompts, and the translations."""
        return [*self.splits.values(), *(split for split in (self.prompts, self.translations) if split)]

    @property
    def known_splits(self) -> list[Split]:
        """As `all_splits`, but without texts that are not embedded yet, such as those of another evaluation."""
        texts: list[Split | None] = []
        # Feature sets may outlive the files of class names and translations.
        with suppress(RequestError):
            texts.append(self.prompts)
        with suppress(RequestError):
            texts.append(self.translations)
        made = [split for split in texts if split and all(is_complete(uri) for uri in split.uris)]
        return [*self.splits.values(), *made]

    def _split(self, name: str, source: "_AnySource") -> Split:
        if source not in self._sources:
            self._sources[source] = Listed(source)
        fed = [spec for spec in self.recipe.encoders if _feeds(source, spec)]
        return Split(
            name,
            self._sources[source],
            tuple(self.encoder(spec) for spec in fed),
            tuple(self.uri(name, spec) for spec in fed),
        )


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
            write_shapes(recipe.data_folder, **recipe.data.shapes.model_dump())
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
            raise RequestError(f"the {split.name} split provides {provides}, which no encoder of the recipe takes")


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
