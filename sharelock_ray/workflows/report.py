"""`report`: writes the page of a run or a study from the outputs of the other verbs."""

from sharelock_ray import storage
from sharelock_ray.documents import read_document
from sharelock_ray.errors import RequestError
from sharelock_ray.features.manifest import is_complete
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report.summary import StudySummary, Summary
from sharelock_ray.study.trials import STUDY, Study
from sharelock_ray.workflows.evaluate import EVALUATION, Evaluation
from sharelock_ray.workflows.inputs import Inputs, feature_sets
from sharelock_ray.workflows.timing import seconds_of


def report(recipe: Recipe, inputs: Inputs | None = None) -> Summary:
    """Writes `report.html` from the outputs of the other stages."""
    from sharelock_ray.report.run_page import write_page

    inputs = inputs or Inputs(recipe)
    other = recipe.evaluation.model
    result = None if other else recipe.run.result()
    path = storage.join(recipe.output, EVALUATION)
    if not (result or other) or not storage.exists(path):
        raise RequestError(f"{recipe.output} holds no finished training with an evaluation: run `sharelock evaluate`")
    evaluation = read_document(Evaluation, path)
    # The feature sets of benchmarks are named by their records, which need no others.
    own = [split for split in inputs.known_splits if split.title == split.name]
    if any(record.benchmark for record in evaluation.records):
        own = [split for split in own if all(map(is_complete, split.uris))]
    summary = Summary(
        title=recipe.name,
        note=recipe.note,
        page=storage.join(recipe.output, "report.html"),
        features=tuple(s.manifest for s in feature_sets(own)),
        training=result,
        metrics=() if other else tuple(recipe.run.metrics()),
        records=evaluation.records,
        notes=evaluation.notes,
        seconds=seconds_of(recipe),
        model=other,
        signatures=evaluation.all_signatures,
    )
    write_page(summary)
    return summary


def report_study(folder: str) -> StudySummary:
    """Writes `study.html`, `study.csv` and `study.parquet` from the outputs of `tune` in a folder."""
    path = storage.join(folder, STUDY)
    if not storage.exists(path):
        raise RequestError(f"{folder} holds no study: run `sharelock tune`")
    from sharelock_ray.report.study_page import write_study

    return write_study(read_document(Study, path), folder)
