"""`evaluate`: scores the best checkpoint of a run on feature sets and writes `evaluation.json`."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from sharelock_ray import storage
from sharelock_ray.concepts.classes import ClassSides
from sharelock_ray.config import Config, content_hash
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.encoders.resolved import ResolvedEncoder
from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.evaluation.result import BenchmarkRequest, EvaluationRecord, Example, all_notes, upgraded
from sharelock_ray.evaluation.samples import samples_uri, write_samples
from sharelock_ray.evaluation.signatures.evidence import DuplicatePair, Signature, TrainingDuplicates
from sharelock_ray.evaluation.signatures.scores import of_records
from sharelock_ray.features.featureset import FeatureSet, join
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import TEMPLATES, EvaluationSpec, Recipe
from sharelock_ray.runs.folder import model_file
from sharelock_ray.sources.sample import CAPTIONS, Sample, Source
from sharelock_ray.sources.subset import Subset
from sharelock_ray.workflows.extract import opened
from sharelock_ray.workflows.inputs import Inputs, Split
from sharelock_ray.workflows.timing import timed

if TYPE_CHECKING:
    import numpy as np

    from sharelock_ray.evaluation.scoring import Unseen
    from sharelock_ray.runs.heads import TrainedHeads

EVALUATION = "evaluation.json"
_THUMBNAIL = 128
"""Longer side in pixels."""
_DECODED = 1 << 30
"""Bytes of training features that are decoded for signatures, at most, if this node has not done it yet."""


class EvaluationRequest(Config):
    """The inputs and settings that determine an evaluation."""

    model: str
    """SHA-256 of `checkpoint.json`, or of an official checkpoint."""
    features: tuple[str, ...]
    """Digests of the scored feature sets. Version 1 listed those of all splits."""
    evaluation: EvaluationSpec
    classes: str | None = None
    """Hash of the class names, and of their texts if these are from a file. None in documents of version 1."""
    concepts: str | None = None
    """Hash of the split of concepts and its use. None without one, and in documents of version 6 and earlier."""


class Evaluation(Document):
    """`evaluation.json`: the request, and a record for each task and data set."""

    schema_version = 9

    request: EvaluationRequest
    records: tuple[EvaluationRecord, ...]
    notes: tuple[str, ...] = ()
    """Tasks that were skipped, and why."""
    signatures: tuple[Signature, ...] = ()
    """Failure signatures, present or absent, that features show. Empty in documents of version 4 and earlier."""

    @property
    def header(self) -> "Evaluation":
        """The request alone, for the samples of the split."""
        return Evaluation(request=self.request, records=())

    @property
    def all_signatures(self) -> tuple[Signature, ...]:
        """The stored signatures, and those that the records show."""
        return (*self.signatures, *of_records(self.records))

    def with_record(self, record: EvaluationRecord) -> "Evaluation":
        """A copy with the record of a benchmark, in place of an earlier one of the same benchmark and part of it."""

        def place(other: EvaluationRecord) -> object:
            return other.benchmark and (other.benchmark.name, other.benchmark.part)

        others = tuple(other for other in self.records if place(other) != place(record))
        return self.model_copy(update={"records": (*others, record)})

    @model_validator(mode="before")
    @classmethod
    def _of_versions_1_and_2(cls, content: Any) -> Any:
        return upgraded(content)


class ScoredModel:
    """The model that is scored: hashed and loaded once, and only if that is needed."""

    def __init__(self, recipe: Recipe) -> None:
        self.place = recipe.evaluation.model or recipe.run.best
        """The checkpoint folder, or an official checkpoint."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `checkpoint.json`, or of an official checkpoint."""
        return storage.sha256_of(model_file(self.place))

    @cached_property
    def heads(self) -> "TrainedHeads":
        """The trained heads."""
        from sharelock_ray.runs.heads import load_trained_heads

        return load_trained_heads(self.place)


def evaluate(recipe: Recipe, inputs: Inputs | None = None) -> Evaluation:
    """Scores the best checkpoint, or `evaluation.model`, on the test split, or on the validation pairs without one; and
    on the benchmarks.

    What was scored before is kept, also of benchmarks that the recipe does not name now. Class prompts, translations
    and benchmarks that have no features yet are extracted first. Benchmarks do not need the features of the split.

    Raises:
        RequestError: there is no trained model, it was trained on other encoders, or the split or a benchmark has
            nothing to score.
    """
    path = storage.join(recipe.output, EVALUATION)
    model = ScoredModel(recipe)
    if not storage.exists(model_file(model.place)):
        how = "check `evaluation.model`" if recipe.evaluation.model else "run `sharelock train` first"
        raise RequestError(f"{recipe.evaluation.model or recipe.output} holds no trained model: {how}")
    inputs = inputs or Inputs(recipe)
    if recipe.evaluation.model:
        # Their features may be missing.
        for encoder in (recipe.vision, recipe.language):
            model.heads.require_encoder(inputs.encoder(encoder))
    benchmarks = inputs.benchmarks  # Before anything is scored.
    known = read_document(Evaluation, path) if storage.exists(path) else None
    found = _of_split(recipe, inputs, model, known)
    if benchmarks:
        from sharelock_ray.workflows.benchmark_records import new_records

        for record in new_records(recipe, inputs, model, found.records):
            found = found.with_record(record)
            storage.write_json(path, found.content())
    if found is known:
        say("evaluate: already done")
        return found
    for signature in found.all_signatures:
        if signature.present:
            say(f"evaluate: {signature.title}: {signature.statement}")
    return found


def _of_split(recipe: Recipe, inputs: Inputs, model: ScoredModel, known: Evaluation | None) -> Evaluation:
    """Scores the split, unless that is known and has samples; records of benchmarks are those in `known` that are of
    this model, or of the frozen features of its encoder."""
    path = storage.join(recipe.output, EVALUATION)
    split = "test" if "test" in recipe.splits else "train"
    of_model = known if known and known.request.model == model.digest else None
    kept = _of_benchmarks(known, model, inputs.encoder(recipe.vision)) if known else ()
    if inputs.benchmarks and not all(is_complete(inputs.uri(split, spec)) for spec in _scored(recipe, split)):
        say(note := f"the {split} split is left out: it has no features")
        return of_model or Evaluation(request=_request(inputs, model, []), records=kept, notes=(note,))
    sets = _sets(inputs, split)
    translations = open_texts(inputs, inputs.translations) if inputs.translations else None
    asked = _request(inputs, model, [*sets.values(), *([translations] if translations else [])])
    samples = samples_uri(recipe.output, sets["vision"].manifest.dataset, "test" if split == "test" else "validation")
    if known and _covers(known.request, asked) and storage.exists(samples):
        return known
    from sharelock_ray.batches.sampling import split_validation
    from sharelock_ray.evaluation.scoring import evaluate as score
    from sharelock_ray.evaluation.scoring import labelled, unseen_classes

    with timed(recipe, "evaluate"):
        heads = model.heads
        for feature_set in sets.values():
            heads.require_made_by(feature_set)
        images, pairs = sets["vision"], join(**sets) if "language" in sets else None
        names, prompts = None, None
        if split == "test":
            names = recipe.class_names() or []
            if names and inputs.prompts and len(labelled(images, len(names))[0]):
                prompts = open_texts(inputs, inputs.prompts)
        elif pairs is not None:
            trained = inputs.pairing.kept(pairs)
            split, pairs = "validation", split_validation(trained, recipe.alignment.validation_fraction)[1]
        spec = recipe.evaluation
        # Descriptions of classes have no templates.
        templates = spec.templates if recipe.data.class_texts in (None, TEMPLATES) else ()
        source = inputs.splits["test" if "test" in recipe.splits else "train"].source
        # What another model was trained on is not known.
        trained_on = _training_sets(inputs) if split == "test" and not spec.model else {}
        seen = _seen_classes(names, trained_on, inputs.sides) if prompts else None
        scored = score(heads, images, pairs, split, names, prompts, templates, spec.recall_at, translations, seen)
        if (unseen := _unseen(inputs, model)) is not None:
            if names and prompts:
                scored.records.insert(0, unseen_classes(heads, images, prompts, names, templates, split, unseen))
            else:
                scored.notes.append(f"unseen classes are not scored: no image of the {split} split has a named label")
        shown, duplicates = _with_thumbnails(scored.records, _training_duplicates(images, trained_on), source, inputs)
        found = Evaluation(
            request=asked,
            records=(*shown, *kept),
            notes=tuple(scored.notes),
            signatures=(*scored.signatures, *([duplicates] if duplicates else [])),
        )
    write_samples(samples, scored.samples, {"evaluation": json.dumps(found.header.content())})
    storage.write_json(path, found.content())
    titles = dict.fromkeys(
        f"{record.title} of {record.result.images:,} images" for record in found.records if not record.benchmark
    )
    say(f"evaluate: {', '.join(titles)} of the {split} split")
    for note in all_notes(found.records, found.notes):
        say(f"evaluate: {note}")
    return found


def _of_benchmarks(known: Evaluation, model: ScoredModel, vision: ResolvedEncoder) -> tuple[EvaluationRecord, ...]:
    """The known records of benchmarks that are of this model, or of the frozen features of its vision encoder."""

    def holds(asked: BenchmarkRequest) -> bool:
        return asked.images.path.endswith(f"/{vision.folder}") if asked.frozen else asked.model == model.digest

    return tuple(record for record in known.records if record.benchmark and holds(record.benchmark))


def open_texts(inputs: Inputs, texts: Split) -> FeatureSet:
    """Opens class prompts or translations of the recipe's language encoder, and extracts them first if they are
    missing."""
    return opened(inputs, [(texts, inputs.recipe.language)])[0]


def _with_thumbnails(
    records: Sequence[EvaluationRecord], duplicates: TrainingDuplicates | None, source: Source, inputs: Inputs
) -> tuple[list[EvaluationRecord], TrainingDuplicates | None]:
    """Adds a thumbnail to each image that is shown and can be read. The report then needs no images.

    Args:
        source: that of the scored images.
    """
    keys = frozenset(example.key for record in records for example in record.examples)
    pairs = duplicates.pairs if duplicates and duplicates.present else ()
    found = _thumbnails(source, keys | {pair.test for pair in pairs})
    training = _thumbnails(inputs.splits["train"].source, frozenset(pair.training for pair in pairs)) if pairs else {}
    if missing := len(keys - found.keys()):
        say(f"evaluate: {missing} of {len(keys)} example images cannot be read any more: the page has no picture")

    def pictured(example: Example) -> Example:
        return example.model_copy(update={"thumbnail": found.get(example.key)})

    def pair_pictured(pair: DuplicatePair) -> DuplicatePair:
        thumbnails = {"test_thumbnail": found.get(pair.test), "training_thumbnail": training.get(pair.training)}
        return pair.model_copy(update=thumbnails)

    shown = [record.model_copy(update={"examples": tuple(map(pictured, record.examples))}) for record in records]
    if duplicates and pairs:
        duplicates = duplicates.model_copy(update={"pairs": tuple(map(pair_pictured, pairs))})
    return shown, duplicates


def _thumbnails(source: Source, keys: frozenset[str]) -> dict[str, str]:
    """Thumbnails, by key, of the images of a source that can be read."""
    found: dict[str, str] = {}
    # Feature sets can be scored after their inputs are deleted.
    with suppress(SharelockError, OSError):
        wanted = Subset(source, keys)
        for item in (item for shard in wanted.shards() for item in wanted.read(shard)):
            if isinstance(item, Sample) and item.image is not None:
                found[item.key] = _thumbnail(item.image, item.key)
    return found


def _thumbnail(data: bytes, key: str) -> str:
    small = upright_image(data, key)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _training_sets(inputs: Inputs) -> dict[str, FeatureSet]:
    """Opens the training sets, by modality, that are there and that this node can map without decoding gigabytes."""
    sets: dict[str, FeatureSet] = {}
    for encoder in (inputs.recipe.vision, inputs.recipe.language):
        with suppress(SharelockError, OSError):
            found = inputs.open("train", encoder)
            # Of a language set, only the texts are needed.
            if encoder.modality == "language" or found.unmade_nbytes <= _DECODED:
                sets[encoder.modality] = found
    return sets


def _unseen(inputs: Inputs, model: ScoredModel) -> "Unseen | None":
    """How the unseen classes of the recipe's split of concepts are scored; None without one.

    Raises:
        RequestError: the model was trained without this split.
    """
    import numpy as np

    from sharelock_ray.evaluation.scoring import Unseen
    from sharelock_ray.evaluation.tasks.generalised import Sides

    sides, recipe = inputs.sides, inputs.recipe
    if sides is None:
        return None
    concepts = inputs.pairing.concepts or ""
    if model.heads.checkpoint.pairing != inputs.pairing.identity:
        raise RequestError(
            f"{model.place} was not trained by the split of concepts {concepts}, so its unseen classes may have been "
            f"seen: train with that split, in another `output`, or take `data.concepts` away"
        )

    def array(labels: Sequence[int]) -> np.ndarray:
        return np.array(labels, np.int64)

    return Unseen(
        concepts=concepts,
        sides=Sides(array(sorted((*sides.seen, *sides.validation))), array(sides.unseen)),
        validation=Sides(array(sides.seen), array(sides.validation)) if sides.validation else None,
        training=inputs.open("train", recipe.vision),
        held_out=recipe.alignment.validation_fraction,
    )


def _seen_classes(
    names: Sequence[str] | None, training: Mapping[str, FeatureSet], sides: ClassSides | None
) -> "np.ndarray | None":
    """(C,) bool: the classes that a split of concepts or training captions name; None if the captions are gone."""
    import numpy as np

    from sharelock_ray.evaluation.signatures.classes import named_in

    if names and sides is not None:
        return np.isin(np.arange(len(names)), sides.seen)
    with suppress(SharelockError, OSError):
        if names and "language" in training:
            return named_in(names, training["language"].table["text"])
    return None


def _training_duplicates(images: FeatureSet, training: Mapping[str, FeatureSet]) -> TrainingDuplicates | None:
    """Looks for test images in the training set; None if its features are gone."""
    from sharelock_ray.evaluation.signatures.duplicates import training_duplicates

    with suppress(SharelockError, OSError):
        return training_duplicates(images, training["vision"]) if "vision" in training else None
    return None


def _sets(inputs: Inputs, split: str) -> dict[str, FeatureSet]:
    """Opens the feature sets of the evaluated split, by modality; captions only if its source provides them."""
    return {spec.modality: inputs.open(split, spec) for spec in _scored(inputs.recipe, split)}


def _scored(recipe: Recipe, split: str) -> list[EncoderSpec]:
    return [recipe.vision, *([recipe.language] if CAPTIONS in recipe.splits[split].provides else [])]


def _request(inputs: Inputs, model: ScoredModel, sets: Sequence[FeatureSet]) -> EvaluationRequest:
    recipe, names = inputs.recipe, inputs.recipe.class_names()
    described = inputs.class_texts.name if inputs.class_texts else None
    of_concepts = (inputs.pairing.identity, inputs.sides.validation) if inputs.sides else None
    return EvaluationRequest(
        model=model.digest,
        features=tuple(s.manifest.digest for s in sets),
        # Their records have their own requests.
        evaluation=recipe.evaluation.model_copy(update={"benchmarks": {}}),
        classes=content_hash(names, described) if described else content_hash(names),
        concepts=content_hash(of_concepts) if of_concepts else None,
    )


def _covers(known: EvaluationRequest, asked: EvaluationRequest) -> bool:
    """Tells whether a stored evaluation answers the request."""
    same = {"features": asked.features, "classes": known.classes or asked.classes}
    return set(asked.features) <= set(known.features) and known.model_copy(update=same) == asked
