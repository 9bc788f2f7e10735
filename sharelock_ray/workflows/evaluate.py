"""`evaluate`: scores the best checkpoint of a run on feature sets, and leaves `evaluation.json`."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.evaluation.result import Evaluation, Example
from sharelock_ray.features.featureset import FeatureSet, join, open_features
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.progress import say
from sharelock_ray.recipe.schema import EvaluationSpec, Recipe
from sharelock_ray.runs.folder import CHECKPOINT
from sharelock_ray.sources.sample import CAPTIONS, Sample, Source
from sharelock_ray.sources.subset import Subset
from sharelock_ray.workflows.extract import extract_splits
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.timing import timed

EVALUATION = "evaluation.json"
_THUMBNAIL = 128
"""Pixels of the longer side."""


class EvaluationRequest(Config):
    """What an evaluation depends on."""

    model: str
    """SHA-256 of `checkpoint.json`."""
    features: tuple[str, ...]
    """Digests of the feature sets that are scored; earlier versions noted those of all splits."""
    evaluation: EvaluationSpec
    classes: str | None = None
    """Hash of the class names. None where the version that wrote it did not note it yet."""


class EvaluationRecord(Document):
    """`evaluation.json`: what was asked, and what was found."""

    schema_version = 2

    request: EvaluationRequest
    result: Evaluation


def evaluate(recipe: Recipe, inputs: Inputs | None = None) -> Evaluation:
    """Scores the best checkpoint on the test split; without one, on the validation pairs of the training split.

    Prompts of the named classes that are not embedded yet, such as in other templates, are extracted first.
    """
    path = storage.join(recipe.output, EVALUATION)
    if not storage.exists(storage.join(recipe.run.best, CHECKPOINT)):
        raise RequestError(f"{recipe.output} holds no trained model: run `sharelock train` first")
    inputs = inputs or Inputs(recipe)
    split = "test" if "test" in recipe.splits else "train"
    sets = _sets(inputs, split)
    asked = _request(recipe, list(sets.values()))
    if storage.exists(path) and _covers((known := read_document(EvaluationRecord, path)).request, asked):
        say("evaluate: already done")
        return known.result
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
            prompts = open_prompts(inputs) if names and len(labelled(images, len(names))[0]) else None
        elif pairs is not None:
            split, pairs = "validation", split_validation(pairs, recipe.alignment.validation_fraction)[1]
        spec = recipe.evaluation
        source = inputs.splits["test" if "test" in recipe.splits else "train"].source
        result = score(heads, images, pairs, split, names, prompts, spec.templates, spec.recall_at)
        result = result.model_copy(update={"examples": _with_thumbnails(result.examples, source)})
    storage.write_json(path, EvaluationRecord(request=asked, result=result).content())
    scored = [
        f"{what} of {found.images:,} images"
        for what, found in (
            ("zero-shot classification", result.zero_shot and result.zero_shot.among_all),
            ("retrieval", result.retrieval),
        )
        if found
    ]
    say(f"evaluate: {', '.join(scored)} of the {split} split")
    for note in result.notes:
        say(f"evaluate: {note}")
    return result


def open_prompts(inputs: Inputs) -> FeatureSet:
    """The embedded class prompts of the recipe's language encoder; they are extracted where they are not there yet."""
    prompts = inputs.prompts
    assert prompts is not None, "asked for without class names"
    uri = inputs.uri(prompts.name, inputs.recipe.language)
    if not is_complete(uri):
        place = prompts.uris.index(uri)
        extract_splits(inputs.recipe, [replace(prompts, encoders=(prompts.encoders[place],), uris=(uri,))])
    return open_features(uri)


def _with_thumbnails(examples: Sequence[Example], source: Source) -> tuple[Example, ...]:
    """Examples with a small picture each, as far as their images are still there: a page is made without the data."""
    found: dict[str, str] = {}
    # Feature sets outlive their inputs, and so does what is scored on them.
    with suppress(SharelockError, OSError):
        wanted = Subset(source, frozenset(example.key for example in examples))
        for item in (item for shard in wanted.shards() for item in wanted.read(shard)):
            if isinstance(item, Sample) and item.image is not None:
                found[item.key] = _thumbnail(item.image, item.key)
    if missing := len(examples) - len(found):
        say(f"evaluate: {missing} of {len(examples)} example images cannot be read any more: the page has no picture")
    return tuple(example.model_copy(update={"thumbnail": found.get(example.key)}) for example in examples)


def _thumbnail(data: bytes, key: str) -> str:
    small = upright_image(data, key)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _sets(inputs: Inputs, split: str) -> dict[str, FeatureSet]:
    """The feature sets of the evaluated split, by modality; captions only where its source has some."""
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
    """Whether an evaluation that was made is what is asked for."""
    same = {"features": asked.features, "classes": known.classes or asked.classes}
    return set(asked.features) <= set(known.features) and known.model_copy(update=same) == asked
