"""The stages of a run, each from what the ones before it left on storage. What is done is left alone, and said.

Heavy libraries are imported by the stage that needs them, so that a run with nothing left to do ends at once.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ConfigDict

from sharelock_ray import storage
from sharelock_ray.config import Config, content_hash
from sharelock_ray.demo.shapes import write_shapes
from sharelock_ray.documents import Document, read_document
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.evaluation.result import Evaluation
from sharelock_ray.features.audit import Audit, audit_split, why_empty
from sharelock_ray.features.featureset import FeatureSet, join, open_features
from sharelock_ray.features.manifest import inputs_with_rejects, is_complete, read_manifest
from sharelock_ray.features.writer import remove_leftovers
from sharelock_ray.progress import Progress, clock, say
from sharelock_ray.recipe.load import write_recipe
from sharelock_ray.recipe.schema import EvaluationSpec, Recipe
from sharelock_ray.report.summary import StudySummary, Summary
from sharelock_ray.runs.folder import CHECKPOINT, TrainingResult
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.spec import SourceSpec, require_captions
from sharelock_ray.study.trials import STUDY, Study
from sharelock_ray.workflows.plan import PROBE, Plan, estimate, predictions

_T = TypeVar("_T")
_R = TypeVar("_R")
# To start a Ray for fewer shards than this takes longer than to check them.
_FEW = 64
_AUDIT, _EVALUATION, _SECONDS = "audit.json", "evaluation.json", "seconds.json"


class Audited(Config):
    """An audit, and the content that was audited."""

    digest: str
    audit: Audit


class AuditRecord(Document):
    """`audit.json`: the last audit of each feature set, by its URI."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Audited]


class StageSeconds(Document):
    """`seconds.json`: what each stage took, by its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]


class EvaluationRequest(Config):
    """What an evaluation depends on."""

    model: str
    """SHA-256 of `checkpoint.json`."""
    features: tuple[str, ...]
    """Digests of the feature sets."""
    evaluation: EvaluationSpec
    classes: str | None = None
    """Hash of the class names. None where the version that wrote it did not note it yet."""


class EvaluationRecord(Document):
    """`evaluation.json`: what was asked, and what was found."""

    request: EvaluationRequest
    result: Evaluation


def demo(recipe: Recipe) -> Summary:
    """Every stage.

    Extraction and training each start a Ray of their own where there is none: what Ray Data leaves running, 0.5 GB, is
    more than a small machine can spare.
    """
    extract(recipe)
    _audit_once(recipe)
    train(recipe)
    evaluate(recipe)
    return report(recipe)


def prepare(recipe: Recipe) -> None:
    """Saves the resolved recipe, and writes the built-in data where the recipe asks for it.

    Raises:
        RequestError: the class names, which evaluation will want, cannot be read.
    """
    if recipe.data.shapes is not None and not storage.exists(storage.join(recipe.data_folder, "shapes.json")):
        say(f"data: renders coloured shapes into {recipe.data_folder}")
    with _timed(recipe, "data"):
        if recipe.data.shapes is not None:
            write_shapes(recipe.data_folder, **recipe.data.shapes.model_dump())
    recipe.class_names()
    write_recipe(recipe)


def plan(recipe: Recipe, samples: int = PROBE, price: float | None = None) -> Plan:
    """What the recipe's extraction will take (see `workflows.plan`)."""
    prepare(recipe)
    _check_inputs(recipe, recipe.splits)
    return estimate(recipe, samples, price)


def extract(recipe: Recipe) -> list[FeatureSet]:
    """The feature sets of every split and encoder; missing ones are made.

    Raises:
        RunError: a set has no rows, since its inputs are not what they are called.
    """
    prepare(recipe)
    missing = {}
    for split, source in recipe.splits.items():
        uris = [recipe.feature_set_uri(split, encoder) for encoder in recipe.encoders]
        complete = [uri for uri in uris if is_complete(uri)]
        # What is another run's is only read.
        if recipe.features_of is None:
            refuse_other_inputs(source, [open_features(uri) for uri in complete])
        if complete == uris:
            say(f"extract {split}: already done")
            for uri in uris if recipe.features_of is None else []:
                remove_leftovers(uri)
        else:
            missing[split] = source
    if missing:
        _extract(recipe, missing)
    sets = _feature_sets(recipe)
    for feature_set in sets:
        if nothing := why_empty(feature_set):
            raise RunError(
                f"{feature_set.uri}: {nothing}: mend the inputs, delete that folder, and run the same command again"
            )
    return sets


def refuse_other_inputs(source: SourceSpec, sets: Sequence[FeatureSet]) -> None:
    """Raises RequestError where a source lists other shards than the complete sets of its split were made from.

    One that has rejects may have changed, since that is how they are mended. Sets may outlive their inputs: where
    nothing can be listed any more, nothing is said.
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
                f"restore them, set another `output` or `data.dataset`, or delete that folder to make it anew"
            )


def _check_inputs(recipe: Recipe, splits: Mapping[str, SourceSpec]) -> None:
    """Raises RequestError where a source names no inputs, or none of a kind that an encoder wants."""
    for source in splits.values():
        source.shards()
        if any(encoder.modality == "language" for encoder in recipe.encoders):
            require_captions(source)


def _extract(recipe: Recipe, splits: Mapping[str, SourceSpec]) -> None:
    from sharelock_ray.engine import cluster
    from sharelock_ray.engine.extraction import ExtractionJob
    from sharelock_ray.engine.extraction import extract as extract_job

    _check_inputs(recipe, splits)  # Before Ray is started for it.
    with cluster.connected():
        for split, source in splits.items():
            planned = predictions(recipe, split)
            job = ExtractionJob(recipe.features_folder, recipe.data.dataset, split, source, recipe.encoders, planned)
            with _timed(recipe, f"extract {split}"):
                sets = extract_job(job, recipe.operations.extraction)
            counts = ", ".join(f"{s.manifest.rows:,} {s.manifest.modality} rows" for s in sets)
            say(f"extract {split}: {counts}, {sum(s.manifest.rejects for s in sets)} rejects")
            if planned:
                taken, foreseen = sets[0].manifest.wall_seconds, next(iter(planned.values())).wall_seconds
                say(f"extract {split}: took {clock(taken)}, was planned to take {clock(foreseen)}")


def audit(recipe: Recipe) -> list[Audit]:
    """Checks every feature set against its manifest, the inputs, read anew, and the sets of the other modality."""
    sets = _feature_sets(recipe)
    audits = []
    with _timed(recipe, "audit"):
        for split, source in recipe.splits.items():
            of_split = [s for s in sets if s.manifest.split == split]
            with Progress("audit", "inputs") as progress:
                found = audit_split(of_split, source, _each, progress.update)
            if not any(each.problems for each in found):
                _match(of_split, found)
            audits += found
    record = {s.uri: Audited(digest=s.manifest.digest, audit=found) for s, found in zip(sets, audits, strict=True)}
    storage.write_json(storage.join(recipe.output, _AUDIT), AuditRecord.model_validate(record).content())
    if not any(each.problems for each in audits):
        say(f"audit: {len(audits)} feature sets are whole, each input in rows or rejects exactly once")
    return audits


def _audit_once(recipe: Recipe) -> None:
    """Audits the feature sets, unless they are those that were found sound before.

    Raises:
        RunError: a set is not sound.
    """
    path = storage.join(recipe.output, _AUDIT)
    known = read_document(AuditRecord, path).__pydantic_extra__ if storage.exists(path) else {}
    sound = {uri: each.digest for uri, each in known.items() if not each.audit.problems}
    if all(sound.get(s.uri) == s.manifest.digest for s in _feature_sets(recipe)):
        say("audit: already done")
        return
    for each in audit(recipe):
        each.require()


def _each(function: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
    """What `function` gives of each of `items`, in their order: by threads where they are few, else by tasks of Ray.

    On a cluster always by tasks, since its nodes may be nearer to the data.
    """
    if len(items) > _FEW or os.environ.get("RAY_ADDRESS"):
        from sharelock_ray.engine.tasks import each

        yield from each("audit", function, items)
    else:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(function, items)


def _match(sets: Sequence[FeatureSet], audits: Sequence[Audit]) -> None:
    """Counts the keys of each set of a split that every set of the other modality has too."""
    for feature_set, found in zip(sets, audits, strict=True):
        others = [s for s in sets if s.manifest.modality != feature_set.manifest.modality]
        found.matched = len(set(feature_set.keys).intersection(*(other.keys for other in others)))
        # Of a source without images, or without captions, one side is nothing but rejects.
        if not found.matched and all(s.manifest.rows for s in (feature_set, *others)):
            found.problems.append("no key is also in the sets of the other modality")


def train(recipe: Recipe) -> TrainingResult:
    """The trained alignment of the recipe's encoders on the training split."""
    with _timed(recipe, "train"):
        return _train(recipe)


def _train(recipe: Recipe) -> TrainingResult:
    run = recipe.run
    if recipe.data.classes is not None:
        recipe.class_names()  # What evaluation cannot use is said before the training.
    vision, language = (recipe.feature_set_uri("train", encoder) for encoder in (recipe.vision, recipe.language))
    run.begin(recipe.alignment, read_manifest(vision), read_manifest(language))
    # Not before: a request that does not fit must leave the recipe of the training that is there.
    write_recipe(recipe)
    result = run.result()
    if result is not None:
        say(f"train: already done ({run.uri})")
        return result
    from sharelock_ray.engine.training import train as train_run

    result = train_run(run, vision, language, recipe.alignment, recipe.operations.training)
    best = f"{result.best_validation_loss:.3f} at step {result.best_step:,}"
    say(f"train: {result.steps:,} steps, best validation loss {best}")
    return result


def tune(recipe: Recipe) -> StudySummary:
    """Runs the recipe's study, and writes its report (see `workflows.tune`)."""
    from sharelock_ray.workflows import tune as study

    write_recipe(recipe)
    started = time.monotonic()
    found = study.tune(recipe)
    finished = sum(trial.state == "finished" for trial in found.trials)
    say(f"tune: {finished:,} of {len(found.trials):,} trials finished, in {clock(time.monotonic() - started)}")
    return report_study(recipe.output)


def report_study(folder: str) -> StudySummary:
    """Writes `study.html`, `study.csv` and `study.parquet` from what `tune` left in a folder."""
    path = storage.join(folder, STUDY)
    if not storage.exists(path):
        raise RequestError(f"{folder} holds no study: run `sharelock tune`")
    from sharelock_ray.report.study_page import write_study

    return write_study(read_document(Study, path), folder)


def evaluate(recipe: Recipe) -> Evaluation:
    """Scores the best checkpoint on the test split; without one, on the validation pairs of the training split."""
    path = storage.join(recipe.output, _EVALUATION)
    asked = _evaluation_request(recipe)
    if storage.exists(path):
        known = read_document(EvaluationRecord, path)
        noted = known.request.classes or asked.classes
        if known.request.model_copy(update={"classes": noted}) == asked:
            say("evaluate: already done")
            return known.result
    from sharelock_ray.batches.sampling import split_validation
    from sharelock_ray.evaluation.evaluate import evaluate as evaluate_model
    from sharelock_ray.runs.model import load_model

    with _timed(recipe, "evaluate"):
        split = "test" if "test" in recipe.splits else "train"
        pairs = join(
            *(open_features(recipe.feature_set_uri(split, encoder)) for encoder in (recipe.vision, recipe.language))
        )
        if split == "train":
            split, pairs = "validation", split_validation(pairs, recipe.alignment.validation_fraction)[1]
        names = recipe.class_names() or () if split == "test" else None
        spec = recipe.evaluation
        model = load_model(recipe.run.best, trust_remote_code=_trusts(recipe))
        result = evaluate_model(model, pairs, split, names, spec.templates, spec.recall_at)
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


def _trusts(recipe: Recipe) -> bool:
    """Whether the recipe consents to what its checkpoint would run: the code of the model that it names itself."""
    from sharelock_ray.runs.checkpoint import read_checkpoint

    ours, theirs = recipe.language, read_checkpoint(recipe.run.best).language.encoder
    same = isinstance(theirs, LanguageSpec) and (theirs.model, theirs.revision) == (ours.model, ours.revision)
    return ours.trust_remote_code and same


def report(recipe: Recipe) -> Summary:
    """Writes `report.html` from what the other stages left."""
    from sharelock_ray.report.run_page import write_page

    result = recipe.run.result()
    path = storage.join(recipe.output, _EVALUATION)
    if result is None or not storage.exists(path):
        raise RequestError(f"{recipe.output} holds no finished training with an evaluation: run `sharelock evaluate`")
    evaluation = read_document(EvaluationRecord, path).result
    summary = Summary(
        title=recipe.name,
        note=recipe.note,
        page=storage.join(recipe.output, "report.html"),
        features=tuple(s.manifest for s in _feature_sets(recipe)),
        training=result,
        metrics=tuple(recipe.run.metrics()),
        evaluation=evaluation,
        seconds=_seconds(recipe),
    )
    write_page(summary, _images(recipe, [example.key for example in evaluation.examples]))
    return summary


def _feature_sets(recipe: Recipe) -> list[FeatureSet]:
    return [
        open_features(recipe.feature_set_uri(split, encoder)) for split in recipe.splits for encoder in recipe.encoders
    ]


def _evaluation_request(recipe: Recipe) -> EvaluationRequest:
    checkpoint = storage.join(recipe.run.best, CHECKPOINT)
    if not storage.exists(checkpoint):
        raise RequestError(f"{recipe.output} holds no trained model: run `sharelock train` first")
    return EvaluationRequest(
        model=storage.sha256_of(checkpoint),
        features=tuple(s.manifest.digest for s in _feature_sets(recipe)),
        evaluation=recipe.evaluation,
        classes=content_hash(recipe.class_names()),
    )


def _images(recipe: Recipe, keys: Sequence[str]) -> dict[str, bytes]:
    """The image files of some samples, by key, from the split that was evaluated."""
    wanted = set(keys)
    source = recipe.splits.get("test", recipe.splits["train"])
    found: dict[str, bytes] = {}
    for shard in source.shards():
        if not any(key.startswith(f"{shard.name}/") for key in wanted):
            continue
        for item in source.read(shard):
            if isinstance(item, Sample) and item.key in wanted and item.image is not None:
                found[item.key] = item.image
    if missing := wanted - found.keys():
        raise RunError(f"the image {min(missing)} is not in the data any more: restore the data to write the report")
    return found


@contextmanager
def _timed(recipe: Recipe, stage: str) -> Iterator[None]:
    """Notes the seconds of a stage that ends well and did something."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    known = _seconds(recipe)
    if stage not in known:
        record = StageSeconds.model_validate(known | {stage: round(seconds, 2)})
        storage.write_json(storage.join(recipe.output, _SECONDS), record.content())


def _seconds(recipe: Recipe) -> dict[str, float]:
    path = storage.join(recipe.output, _SECONDS)
    return read_document(StageSeconds, path).__pydantic_extra__ if storage.exists(path) else {}
