"""`tune`: runs a recipe's study and leaves `study.json`, `winner.yaml` and a report."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import yaml

from sharelock_ray import storage
from sharelock_ray.config import content_hash
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.manifest import Manifest, read_manifest
from sharelock_ray.progress import clock, say
from sharelock_ray.recipe.load import with_settings, write_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report.summary import StudySummary
from sharelock_ray.sources.sample import IMAGES
from sharelock_ray.study.spec import Range, TuningSpec
from sharelock_ray.study.trials import CHOSEN_ON_TEST, STUDY, Reading, Study, Trial
from sharelock_ray.workflows.evaluate import open_texts
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.report import report_study

WINNER = "winner.yaml"


def tune(recipe: Recipe) -> StudySummary:
    """Runs the recipe's study, and writes its report."""
    write_recipe(recipe)
    started = time.monotonic()
    found = run_study(recipe)
    finished = sum(trial.state == "finished" for trial in found.trials)
    say(f"tune: {finished:,} of {len(found.trials):,} trials finished, in {clock(time.monotonic() - started)}")
    return report_study(recipe.output)


def run_study(recipe: Recipe) -> Study:
    """Runs or resumes the recipe's study; writes `study.json`, and the best point's recipe as `winner.yaml`.

    Raises:
        RequestError: the recipe has no `tuning`, a point is no valid recipe, feature sets are missing, or the test
            split has no labels for the named classes.
        RunError: no trial finished.
    """
    spec = _spec(recipe)
    if "zero_shot" in spec.objective:
        say("tune: selects by zero-shot accuracy on the test split, so the best score is optimistic: see the report")
    checked = [point_recipe(recipe, point) for point in _points_to_check(spec)]
    prepare = Preparation(recipe, spec)
    for each in checked:
        if each.data.class_texts is not None:
            prepare.embed_prompts(each)  # They are trained on.
    sets = sorted({digest for each in checked for digest in prepare.digests(each)})
    from sharelock_ray.engine.tuning import tune as run_trials
    from sharelock_ray.evaluation.scoring import required_labels
    from sharelock_ray.study.queue import StudyQueue

    for uri, classes in sorted({prepare.labelled_set(each) for each in checked if _has_classes(each)}):
        required_labels(open_features(uri), classes)
    for each in checked:
        prepare.embed_prompts(each)
    database = spec.storage or _journal(recipe)
    searched = {"space": spec.space, "objective": spec.objective}
    name = f"{recipe.name}-{content_hash(recipe.training, searched, sets)}"
    queue = StudyQueue(name, spec, trials_folder(recipe), database, prepare)
    if queue.doubles:
        say(f"tune: {len(queue.doubles):,} points give the same model as another point and are not trained again")
    trials = run_trials(queue, spec, recipe.alignment.steps, recipe.alignment.evaluate_every)
    study = Study(
        name=name,
        title=recipe.name,
        note=recipe.note,
        axes={axis: spec.labels(axis) for axis in spec.space},
        objective=spec.objective,
        seeds=spec.seeds,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
        trials=tuple(sorted(trials, key=lambda trial: trial.run)),
        doubles=tuple(queue.doubles),
        matched=spec.matched,
        readings=_readings(recipe) if spec.matched else {},
        storage=database,
    )
    storage.write_json(storage.join(recipe.output, STUDY), study.content())
    if not any(trial.state == "finished" for trial in trials):
        raise RunError(f"none of the {len(trials)} trials finished; the first: {trials[0].state}: {trials[0].reason}")
    _write_winner(recipe, study)
    return study


def _readings(recipe: Recipe) -> dict[str, Reading]:
    return {
        name: Reading(model=each.model, pooling=each.pooling, layer=each.layer) for name, each in recipe.studied.items()
    }


def trials_folder(recipe: Recipe) -> str:
    return storage.join(recipe.output, "trials")


def point_recipe(recipe: Recipe, point: dict[str, Any]) -> Recipe:
    """The recipe of one point, with the features of the study.

    Raises:
        RequestError: the point is no valid recipe, or names an unknown encoder.
    """
    changes = _spec(recipe).changes(point)
    chosen = {modality: changes.pop(modality) for modality in ("vision", "language") if modality in changes}
    changed = with_settings(recipe, changes)
    for modality, name in chosen.items():
        names = [encoder.name for encoder in changed.encoders if encoder.modality == modality]
        if name not in names:
            raise RequestError(f"`tuning.space.{modality}` names {name}, but `encoders` has {', '.join(names)}")
    kept = tuple(e for e in changed.encoders if chosen.get(e.modality, e.name) == e.name)
    update: dict[str, Any] = {"encoders": kept}
    if chosen and (pair := changed.alignment.pair):
        pair = chosen.get("vision", pair[0]), chosen.get("language", pair[1])
        update["alignment"] = changed.alignment.model_copy(update={"pair": pair})
    return changed.model_copy(update=update)


def _spec(recipe: Recipe) -> TuningSpec:
    if recipe.tuning is None:
        raise RequestError(
            "the recipe has no study: add `tuning`, such as `tuning: {space: {alignment.language.depth: [1, 2]}}`"
        )
    return recipe.tuning


def _points_to_check(spec: TuningSpec) -> Iterator[dict[str, Any]]:
    """All points of a grid; for other samplers, points that cover each value of each axis."""
    if spec.sampler == "grid":
        yield from spec.points()
        return
    values = {name: _values(spec, name) for name in spec.space}
    base = {name: choices[0] for name, choices in values.items()}
    yield base
    for name, choices in values.items():
        for label in choices[1:]:
            yield base | {name: label}


def _values(spec: TuningSpec, axis: str) -> tuple[Any, ...]:
    """The values of an axis; for a range, its bounds."""
    of = spec.space[axis]
    return (of.low, of.high) if isinstance(of, Range) else spec.labels(axis) or ()


class Preparation:
    """Makes the job of a point and a seed; its folder is named by everything that determines its result.

    For points that give the same model, such as different activations at depth 1, it makes the job of the first one.
    """

    def __init__(self, recipe: Recipe, spec: TuningSpec) -> None:
        self._recipe, self._tuning = recipe, spec
        self._inputs = Inputs(recipe)
        self._manifests: dict[str, Manifest] = {}
        self._models: dict[str, str] = {}
        """Key of the model of each point."""
        self._first: dict[str, dict[str, Any]] = {}
        """First point of each model."""

    def __call__(self, point: dict[str, Any], seed: int) -> Any:
        from sharelock_ray.study.trial_job import TrialJob

        point = self._first.setdefault(self._model(point), point)
        recipe = point_recipe(self._recipe, point)
        spec = recipe.training.model_copy(update={"seed": seed})
        inputs = self._inputs.of(recipe)
        vision, language = inputs.training_uris()
        test = prompts = None
        if _has_classes(recipe) and inputs.prompts is not None:
            test, prompts = inputs.uri("test", recipe.vision), inputs.uri(inputs.prompts.name, recipe.language)
        trial = Trial(
            point=point,
            seed=seed,
            run=storage.join(trials_folder(self._recipe), content_hash(spec, *self._trained_on(recipe))),
            without_effect=tuple(axis for axis in point if self._is_idle(axis, point)),
            state="running",
            gpus=self._tuning.gpus_per_trial,
        )
        return TrialJob(
            trial=trial,
            vision=vision,
            language=language,
            spec=spec,
            device="cuda" if self._tuning.gpus_per_trial else "cpu",
            threads=max(1, int(self._tuning.cpus_per_trial)),
            test=test,
            prompts=prompts,
            class_names=tuple(recipe.class_names() or ()) if prompts else (),
            pairing=inputs.pairing,
            unseen=inputs.sides.unseen if inputs.sides else None,
        )

    def digests(self, recipe: Recipe) -> list[str]:
        """Digests of the feature sets of a point.

        Raises:
            RequestError: one is missing.
        """
        inputs = self._inputs.of(recipe)
        uris = list(inputs.training_uris())
        if _has_classes(recipe):
            uris.append(inputs.uri("test", recipe.vision))
        return [self._manifest(uri).digest for uri in uris]

    def labelled_set(self, recipe: Recipe) -> tuple[str, int]:
        """URI of the vision set for zero-shot classification, and the number of classes."""
        return self._inputs.of(recipe).uri("test", recipe.vision), len(recipe.class_names() or ())

    def embed_prompts(self, recipe: Recipe) -> None:
        """Embeds the class prompts with a point's language encoder, if that is not done yet."""
        inputs = self._inputs.of(recipe)
        if (_has_classes(recipe) or inputs.class_texts) and inputs.prompts:
            open_texts(inputs, inputs.prompts)

    def _trained_on(self, recipe: Recipe) -> tuple[object, ...]:
        """Inputs of a point's training and scores: digests of feature sets, the name of the prompts, and the pairing if
        it is another than all pairs."""
        prompts = None
        inputs = self._inputs.of(recipe)
        if _has_classes(recipe) and inputs.prompts:
            texts = inputs.prompts.name.removeprefix("prompts-")
            # The name of the file that held them in earlier versions, kept so that names of trials stay the same.
            prompts = f"{self._inputs.encoder(recipe.language).folder}-{texts}.safetensors"
        return self.digests(recipe), prompts, *filter(None, [inputs.pairing.identity])

    def _model(self, point: dict[str, Any]) -> str:
        """Key of everything that determines a point's model and scores, except the seed."""
        key = json.dumps(point)
        if key not in self._models:
            recipe = point_recipe(self._recipe, point)
            inputs = self._inputs.of(recipe)
            dims = (self._manifest(uri).dim for uri in inputs.training_uris())
            spec = recipe.training.effective(*dims).model_copy(update={"seed": 0})
            self._models[key] = json.dumps([spec.model_dump(mode="json"), *self._trained_on(recipe)])
        return self._models[key]

    def _is_idle(self, axis: str, point: dict[str, Any]) -> bool:
        """Whether all other values of an axis that give a valid recipe give the same model."""
        others = [point | {axis: value} for value in _values(self._tuning, axis) if value != point[axis]]
        found = []
        for other in others:
            with suppress(RequestError):
                found.append(self._model(other) == self._model(point))
        return bool(found) and all(found)

    def _manifest(self, uri: str) -> Manifest:
        if uri not in self._manifests:
            self._manifests[uri] = read_manifest(uri)
        return self._manifests[uri]


def _has_classes(recipe: Recipe) -> bool:
    """Whether trials can be scored by zero-shot classification."""
    test = recipe.splits.get("test")
    named = test is not None and IMAGES in test.provides and recipe.class_names() is not None
    if not named and "zero_shot" in _spec(recipe).objective:
        raise RequestError("the objective zero_shot needs images with class names: set `data.test` and `data.classes`")
    return named


def _journal(recipe: Recipe) -> str:
    """Path of the Optuna journal: beside the trials, or local if they are on an object store, which cannot append."""
    folder = recipe.output if storage.is_local(recipe.output) else storage.absolute(f"runs/{recipe.name}")
    return storage.join(folder, "optuna.journal")


def _write_winner(recipe: Recipe, study: Study) -> None:
    # Imported here, since scipy takes a second to import.
    from sharelock_ray.study.effects import ranked

    best = ranked(study.trials, study.objective[0])[0]
    # In its own folder, since the study's output may hold another training.
    own = {"output": storage.join(recipe.output, "winner"), "features_of": recipe.features_of or recipe.output}
    settings = {"alignment.seed": study.seeds[0], "tuning": None, **own}
    if "zero_shot" in study.objective:
        settings["note"] = f"{recipe.note} {CHOSEN_ON_TEST}".strip()
    winner = with_settings(point_recipe(recipe, best.point), settings)
    content = yaml.safe_dump(winner.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(recipe.output, WINNER), content.encode())
