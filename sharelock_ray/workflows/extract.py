"""`extract`: makes the missing feature sets of every split and of the texts that evaluation needs."""

from collections.abc import Sequence

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
        say(f"extract {split.name}: already done")
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
            planned = predictions(recipe, split.name)
            job = ExtractionJob(
                recipe.features_folder, recipe.data.dataset, split.name, split.source, split.encoders, planned
            )
            with timed(recipe, f"extract {split.name}"):
                sets = run_job(job, recipe.operations.extraction)
            counts = ", ".join(f"{s.manifest.rows:,} {s.manifest.modality} rows" for s in sets)
            say(f"extract {split.name}: {counts}, {sum(s.manifest.rejects for s in sets)} rejects")
            if (joules := total_joules(s.manifest.joules for s in sets)) is not None:
                say(f"extract {split.name}: encoding took {joules / 3.6e6:,.3f} kWh of the GPUs")
            if planned:
                taken, foreseen = sets[0].manifest.wall_seconds, next(iter(planned.values())).wall_seconds
                say(f"extract {split.name}: took {clock(taken)}; the plan said {clock(foreseen)}")
