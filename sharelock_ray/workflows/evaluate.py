"""`evaluate`: scores the best checkpoint of a run on feature sets and writes `evaluation.json`."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import model_validator

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.evaluation.result import EvaluationRecord, Example, all_notes, upgraded
from sharelock_ray.features.featureset import FeatureSet, join, open_features
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import EvaluationSpec, Recipe
from sharelock_ray.runs.folder import CHECKPOINT
from sharelock_ray.sources.sample import CAPTIONS, Sample, Source
from sharelock_ray.sources.subset import Subset
from sharelock_ray.workflows.extract import extract_splits
from sharelock_ray.workflows.inputs import Inputs, Split
from sharelock_ray.workflows.timing import timed

EVALUATION = "evaluation.json"
_THUMBNAIL = 128
"""Longer side in pixels."""


class EvaluationRequest(Config):
    """The inputs and settings that determine an evaluation."""

    model: str
    """SHA-256 of `checkpoint.json`."""
    features: tuple[str, ...]
    """Digests of the scored feature sets. Version 1 listed those of all splits."""
    evaluation: EvaluationSpec
    classes: str | None = None
    """Hash of the class names. None in documents of version 1."""


class Evaluation(Document):
    """`evaluation.json`: the request, and a record for each task and data set."""

    schema_version = 4

    request: EvaluationRequest
    records: tuple[EvaluationRecord, ...]
    notes: tuple[str, ...] = ()
    """Tasks that were skipped, and why."""

    @model_validator(mode="before")
    @classmethod
    def _of_versions_1_and_2(cls, content: Any) -> Any:
        return upgraded(content)


def evaluate(recipe: Recipe, inputs: Inputs | None = None) -> Evaluation:
    """Scores the best checkpoint on the test split, or on the validation pairs if there is no test split.

    Class prompts and translations that have no features yet are extracted first.

    Raises:
        RequestError: the run has no trained model, or the split has nothing to score.
    """
    path = storage.join(recipe.output, EVALUATION)
    if not storage.exists(storage.join(recipe.run.best, CHECKPOINT)):
        raise RequestError(f"{recipe.output} holds no trained model: run `sharelock train` first")
    inputs = inputs or Inputs(recipe)
    split = "test" if "test" in recipe.splits else "train"
    sets = _sets(inputs, split)
    translations = open_texts(inputs, inputs.translations) if inputs.translations else None
    asked = _request(recipe, [*sets.values(), *([translations] if translations else [])])
    if storage.exists(path) and _covers((known := read_document(Evaluation, path)).request, asked):
        say("evaluate: already done")
        return known
    from sharelock_ray.batches.sampling import split_validation
    from sharelock_ray.evaluation.scoring import evaluate as score
    from sharelock_ray.evaluation.scoring import labelled
    from sharelock_ray.runs.heads import load_trained_heads

    with timed(recipe, "evaluate"):
        heads = load_trained_heads(recipe.run.best)
        for feature_set in sets.values():
            heads.require_made_by(feature_set)
        images, pairs = sets["vision"], join(**sets) if "language" in sets else None
        names, prompts = None, None
        if split == "test":
            names = recipe.class_names() or []
            if names and inputs.prompts and len(labelled(images, len(names))[0]):
                prompts = open_texts(inputs, inputs.prompts)
        elif pairs is not None:
            split, pairs = "validation", split_validation(pairs, recipe.alignment.validation_fraction)[1]
        spec = recipe.evaluation
        source = inputs.splits["test" if "test" in recipe.splits else "train"].source
        records, notes = score(
            heads, images, pairs, split, names, prompts, spec.templates, spec.recall_at, translations
        )
        found = Evaluation(request=asked, records=tuple(_with_thumbnails(records, source)), notes=tuple(notes))
    storage.write_json(path, found.content())
    scored = dict.fromkeys(f"{record.title} of {record.result.images:,} images" for record in found.records)
    say(f"evaluate: {', '.join(scored)} of the {split} split")
    for note in all_notes(found.records, found.notes):
        say(f"evaluate: {note}")
    return found


def open_texts(inputs: Inputs, texts: Split) -> FeatureSet:
    """Opens class prompts or translations of the recipe's language encoder, and extracts them first if they are
    missing."""
    uri = inputs.uri(texts.name, inputs.recipe.language)
    if not is_complete(uri):
        place = texts.uris.index(uri)
        extract_splits(inputs.recipe, [replace(texts, encoders=(texts.encoders[place],), uris=(uri,))])
    return open_features(uri)


def _with_thumbnails(records: Sequence[EvaluationRecord], source: Source) -> list[EvaluationRecord]:
    """Adds a thumbnail to each example whose image can be read. The report then needs no images."""
    keys = frozenset(example.key for record in records for example in record.examples)
    found: dict[str, str] = {}
    # Feature sets can be scored after their inputs are deleted.
    with suppress(SharelockError, OSError):
        wanted = Subset(source, keys)
        for item in (item for shard in wanted.shards() for item in wanted.read(shard)):
            if isinstance(item, Sample) and item.image is not None:
                found[item.key] = _thumbnail(item.image, item.key)
    if missing := len(keys) - len(found):
        say(f"evaluate: {missing} of {len(keys)} example images cannot be read any more: the page has no picture")

    def pictured(example: Example) -> Example:
        return example.model_copy(update={"thumbnail": found.get(example.key)})

    return [record.model_copy(update={"examples": tuple(map(pictured, record.examples))}) for record in records]


def _thumbnail(data: bytes, key: str) -> str:
    small = upright_image(data, key)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _sets(inputs: Inputs, split: str) -> dict[str, FeatureSet]:
    """Opens the feature sets of the evaluated split, by modality; captions only if its source provides them."""
    recipe = inputs.recipe
    sets = {"vision": inputs.open(split, recipe.vision)}
    if CAPTIONS in recipe.splits[split].provides:
        sets["language"] = inputs.open(split, recipe.language)
    return sets


def _request(recipe: Recipe, sets: Sequence[FeatureSet]) -> EvaluationRequest:
    return EvaluationRequest(
        model=storage.sha256_of(storage.join(recipe.run.best, CHECKPOINT)),
        features=tuple(s.manifest.digest for s in sets),
        evaluation=recipe.evaluation,
        classes=content_hash(recipe.class_names()),
    )


def _covers(known: EvaluationRequest, asked: EvaluationRequest) -> bool:
    """Tells whether a stored evaluation answers the request."""
    same = {"features": asked.features, "classes": known.classes or asked.classes}
    return set(asked.features) <= set(known.features) and known.model_copy(update=same) == asked
