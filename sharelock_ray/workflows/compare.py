"""`compare`: scores of several runs beside published ones, and the runs in pairs on the same samples."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pyarrow as pa
from pydantic import ValidationError

from sharelock_ray import storage
from sharelock_ray.documents import REMEDY, parse_document, read_document
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation import samples
from sharelock_ray.evaluation.result import BenchmarkRequest, all_notes
from sharelock_ray.report.comparison import PAGE, Comparison, Model, Score, compared, run_scores
from sharelock_ray.report.paired import UnpairedError, paired_scores
from sharelock_ray.runs.folder import RunFolder, model_file
from sharelock_ray.workflows.evaluate import EVALUATION, Evaluation

_DOCUMENT = ".json"


def compare(places: Sequence[str], output: str | None = None) -> Comparison:
    """Compares the evaluations of runs, and writes a page and tables.

    Args:
        places: folders of runs, or their `evaluation.json`.
        output: folder of `compare.html`, and of `compare` and `compare-paired` as CSV and Parquet; None writes
            nothing.

    Raises:
        RequestError: a place is no run, holds no evaluation, is of a newer version, or is given twice.
        RunError: a document or a file of samples is damaged.
    """
    documents = [_document(place) for place in places]
    for place, document in zip(places, documents, strict=True):
        if documents.count(document) > 1:
            raise RequestError(f"the run {place} is given {documents.count(document)} times: give each run once")
    scores, notes = [], []
    evaluations: dict[Model, Evaluation] = {}
    for name, document in zip(_names(documents), documents, strict=True):
        remedy = REMEDY if document.endswith(f"/{EVALUATION}") else f"name the {EVALUATION} of a run"
        evaluation = read_document(Evaluation, document, remedy)
        model = _model(name, _folder(document), evaluation)
        evaluations[model] = evaluation
        found = run_scores(model, evaluation.records, document, evaluation.request.classes)
        notes += [f"{name}: {note}" for note in all_notes(evaluation.records, evaluation.notes)]
        if not found:
            notes.append(f"{name}: the evaluation holds no scores")
        scores += found
    folder = None if output is None else storage.absolute(output)
    comparison = compared(scores, notes, folder and storage.join(folder, PAGE))
    paired, unpaired = paired_scores(comparison.main, partial(_samples, evaluations))
    comparison = replace(comparison, paired=tuple(paired), notes=(*unpaired, *comparison.notes))
    if folder is not None:
        from sharelock_ray.report.compare_page import write_comparison

        write_comparison(comparison, folder)
    return comparison


def _document(place: str) -> str:
    """The URI of a run's evaluation, in one form for all ways to write it."""
    uri = storage.absolute(place.rstrip("/") or "/")
    if uri.endswith(_DOCUMENT):
        if not storage.exists(uri):
            raise RequestError(f"no evaluation at {place}: check the path")
        return uri
    if not storage.is_folder(uri):
        raise RequestError(f"no run at {place}: name the folder of a run, or its {EVALUATION}")
    path = storage.join(uri, EVALUATION)
    if not storage.exists(path):
        raise RequestError(f"{place} holds no evaluation: run `sharelock evaluate`")
    return path


def _folder(document: str) -> str:
    return document.rpartition("/")[0]


def _names(documents: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that differ."""
    paths = [(_folder(uri) if uri.endswith(f"/{EVALUATION}") else uri).split("/") for uri in documents]
    length = 1
    while len({tuple(path[-length:]) for path in paths}) < len(paths):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def _model(name: str, folder: str, evaluation: Evaluation) -> Model:
    """What is known of a run's model, if it is the one that was scored."""
    run = RunFolder(folder)
    path = model_file(run.best)
    if not storage.exists(path) or storage.sha256_of(path) != evaluation.request.model:
        return Model(name)
    vision = language = None
    # Parsing the checkpoint as a document would import torch. Names are for display only, so errors are ignored.
    with suppress(LookupError, TypeError, ValueError):
        content = storage.read_json(path)
        vision, language = (str(content[side]["encoder"]["name"]) for side in ("vision", "language"))
    result = run.result()
    return Model(name, False, vision, language, f"{result.training_pairs:,} pairs" if result else None)


def _samples(evaluations: Mapping[Model, Evaluation], score: Score) -> pa.Table:
    """The samples of a score.

    Raises:
        UnpairedError: there are none, or they are of another evaluation than the score.
        NewerVersionError: a newer version of this package wrote them.
        RunError: the file is damaged.
    """
    again = "run `sharelock evaluate` again to compare it in pairs"
    if score.samples is None or not storage.exists(score.samples):
        raise UnpairedError(f"{score.model.name} has no samples, which older versions did not store: {again}")
    table, request = samples.read_samples(score.samples)
    evaluation = evaluations[score.model]
    try:
        if "benchmark" in request:
            asked = BenchmarkRequest.model_validate_json(request["benchmark"])
            same = asked in [record.benchmark for record in evaluation.records]
        else:
            header = parse_document(Evaluation, request["evaluation"].encode(), score.samples, samples.REMEDY)
            same = header.request == evaluation.request
    except (KeyError, ValidationError):
        raise RunError(f"{score.samples} is damaged (its request cannot be read): {samples.REMEDY}") from None
    if not same:
        raise UnpairedError(f"the samples of {score.model.name} are of another evaluation than its scores: {again}")
    return table
