"""`extract`: makes the missing feature sets of every split and of the texts that evaluation needs."""

from collections.abc import Sequence
from dataclasses import replace

from sharelock_ray.encoders.spec import EncoderSpec
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import is_complete, total_joules
from sharelock_ray.features.soundness import why_empty
from sharelock_ray.features.writer import remove_leftovers
from sharelock_ray.progress import clock, say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.workflows.inputs import Inputs, Split, check_inputs, feature_sets, prepare, refuse_other_inputs
from sharelock_ray.workflows.plan import predictions
from sharelock_ray.workflows.timing import timed


def extract(recipe: Recipe, inputs: Inputs | None = None) -> list[FeatureSet]:
    """Returns the feature sets of every split and encoder; makes missing ones.

    Args:
        inputs: inputs of the recipe, if another stage has resolved them.

    Raises:
        RunError: a set has no rows, since its inputs are not of the declared kind.
    """
    prepare(recipe)
    inputs = inputs or Inputs(recipe)
    missing = []
    for split in inputs.all_splits:
        complete = [uri for uri in split.uris if is_complete(uri)]
        # Feature sets of another run are read only.
        if recipe.features_of is None:
            refuse_other_inputs(split.source, [open_features(uri) for uri in complete])
        if len(complete) < len(split.uris) or not split.uris:
            missing.append(split)
            continue
        say(f"extract {split.title}: already done")
        for uri in split.uris if recipe.features_of is None else []:
            remove_leftovers(uri)
    extract_splits(recipe, missing)
    sets = list(feature_sets(inputs.all_splits))
    for feature_set in sets:
        if nothing := why_empty(feature_set):
            raise RunError(
                f"{feature_set.uri}: {nothing}: fix the inputs, delete that folder, and run the same command again"
            )
    return sets


def extract_splits(recipe: Recipe, splits: Sequence[Split]) -> None:
    """Extracts splits one at a time over one connection to Ray."""
    check_inputs(splits)  # Before Ray starts.
    if not splits:
        return
    from sharelock_ray.engine import cluster
    from sharelock_ray.engine.extraction import ExtractionJob
    from sharelock_ray.engine.extraction import extract as run_job

    with cluster.connected():
        for split in splits:
            planned = predictions(recipe, split.title)
            job = ExtractionJob(
                recipe.features_folder, split.dataset, split.name, split.source, split.encoders, planned
            )
            with timed(recipe, f"extract {split.title}"):
                sets = run_job(job, recipe.operations.extraction)
            counts = ", ".join(f"{s.manifest.rows:,} {s.manifest.modality} rows" for s in sets)
            say(f"extract {split.title}: {counts}, {sum(s.manifest.rejects for s in sets)} rejects")
            if (joules := total_joules(s.manifest.joules for s in sets)) is not None:
                say(f"extract {split.title}: encoding took {joules / 3.6e6:,.3f} kWh of the GPUs")
            if planned:
                taken, foreseen = sets[0].manifest.wall_seconds, next(iter(planned.values())).wall_seconds
                say(f"extract {split.title}: took {clock(taken)}; the plan said {clock(foreseen)}")


def opened(inputs: Inputs, wanted: Sequence[tuple[Split, EncoderSpec]]) -> list[FeatureSet]:
    """Opens the feature set of each split by an encoder; missing ones are extracted first, of each split together."""
    uris = [inputs.uri(split.name, spec, split.dataset) for split, spec in wanted]
    missing: dict[tuple[str, ...], Split] = {}
    for (split, _), uri in zip(wanted, uris, strict=True):
        if not is_complete(uri):
            place = split.uris.index(uri)
            other = missing.get(split.uris, replace(split, encoders=(), uris=()))
            if uri not in other.uris:
                encoders = (*other.encoders, split.encoders[place])
                missing[split.uris] = replace(other, encoders=encoders, uris=(*other.uris, uri))
    extract_splits(inputs.recipe, list(missing.values()))
    return [open_features(uri) for uri in uris]
