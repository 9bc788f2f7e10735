"""`affinity`: visual scores of runs against language scores of their language models."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sharelock_ray import storage
from sharelock_ray.documents import REMEDY, read_document
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.report.comparison import Measure, Score
from sharelock_ray.runs.folder import RunFolder, model_file
from sharelock_ray.study.trials import STUDY, Study
from sharelock_ray.workflows.compare import compare

if TYPE_CHECKING:
    from sharelock_ray.study.affinity_study import Affinity, Seen

_OF_TRIALS = {"zero_shot": "zero-shot accuracy", "recall_at_1": "recall at 1"}
"""Visual scores of a study's trials."""
_Z = 1.959964
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Scored:
    """A run with its visual score, its encoders, its settings except the seed, and its number of training pairs."""

    name: str
    value: float
    error: float | None
    vision: dict[str, Any]
    language: dict[str, Any]
    settings: dict[str, Any]
    pairs: int | None


def affinity(
    places: Sequence[str],
    metric: str | None = None,
    harness: str | None = None,
    scores: Sequence[str] = (),
    visual: str | None = None,
    others: Sequence[str] = (),
    new: Sequence[str] = (),
    output: str | None = None,
) -> "Affinity":
    """Correlates visual scores with language scores over language models, and writes a page, tables and a document.

    Args:
        places: folders of runs, or their `evaluation.json`, or the folder of one study; they differ in the language
            encoder, and may have several seeds of each.
        metric, harness: the language score that decides (see `language_scores.select`).
        scores: tables and documents of language scores, or patterns of them; () for the shipped table.
        visual: the visual score's title, or a part of it that no other has; None: the only main one of all runs.
        others: other language scores, as METRIC or METRIC@HARNESS.
        new: models to predict (see `affinity_study.analyse`).
        output: folder of `affinity.json`, `affinity.html`, `affinity.csv` and `affinity.parquet`; None writes nothing.

    Raises:
        RequestError: a place or a score is missing or ambiguous, the runs have different vision encoders, or runs of
            one language encoder differ in more than the seed.
        RunError: a document is damaged.
    """
    # Imported here, since scipy takes a second to import.
    from sharelock_ray.study.affinity_study import DOCUMENT, Affinity, analyse
    from sharelock_ray.study.language_scores import read_scores, select

    known = read_scores([uri for pattern in scores for uri in storage.expand(pattern) or [pattern]])
    chosen = select(known, metric, harness)
    rest = []
    for other in others:
        name, _, of = other.partition("@")
        rest.append(select(known, name, of or None))
        if rest[-1] == chosen:
            raise RequestError(f"the language score {other} is the one that decides: name others")
    title, protocol, runs, notes = _of_study(places[0], visual) if _is_study(places) else _of_runs(places, visual)
    seen, more = _by_encoder(runs)
    found = analyse(title, protocol, seen, chosen, rest, new, metric is not None, [*notes, *more])
    if output is not None:
        from sharelock_ray.report.affinity_page import write_affinity

        folder = storage.absolute(output)
        document = storage.join(folder, DOCUMENT)
        if storage.exists(document):
            earlier = read_document(Affinity, document)
            now, then = (f"{each.metric}, {each.harness}" for each in (found, earlier))
            before = tuple(each for each in dict.fromkeys((*earlier.before, then)) if each != now)
            found = found.model_copy(update={"before": before})
        storage.write_json(document, found.content())
        write_affinity(found, folder)
    return found


def _is_study(places: Sequence[str]) -> bool:
    return len(places) == 1 and storage.exists(storage.join(storage.absolute(places[0]), STUDY))


def _of_study(place: str, visual: str | None) -> tuple[str, str, list[_Scored], list[str]]:
    """Title, protocol, runs and notes of a study."""
    study = read_document(Study, storage.join(storage.absolute(place), STUDY))
    finished = [trial for trial in study.trials if trial.state == "finished"]
    measured = [name for name in _OF_TRIALS if all(name in trial.values for trial in finished)] if finished else []
    if visual is None and study.objective[0] in measured:
        measured = [study.objective[0]]
    name = _one(visual, {f"{study.title}: {_OF_TRIALS[name]}": name for name in measured}, place)
    left = len(study.trials) - len(finished)
    return (
        f"{study.title}: {_OF_TRIALS[name]}",
        "",
        [_scored(trial.run.rpartition("/")[2], trial.run, trial.values[name], None) for trial in finished],
        [f"left out, not finished: {left} trials"] if left else [],
    )


def _of_runs(places: Sequence[str], visual: str | None) -> tuple[str, str, list[_Scored], list[str]]:
    """Title, protocol, runs and notes of evaluated runs."""
    compared = compare(places)
    own = {of: _own(scores) for of, scores in compared.groups.items()}
    if visual is None:
        # A score that a run lacks is not the one that is meant.
        main = {of: scores for of, scores in own.items() if of in compared.main and len(scores) == len(places)}
        own = main or own
    measure = _one(visual, _titled(own), "these runs")
    scores = own[measure]
    notes = []
    if without := [run.name for run in compared.runs if run not in {score.model for score in scores}]:
        notes.append(f"left out, without this visual score: {', '.join(without)}")
    runs = []
    for score in scores:
        if score.model.language_model is None:
            raise RequestError(
                f"the language encoder of {score.model.name} is unknown, since its checkpoint is missing or newer than "
                "its evaluation: evaluate it again"
            )
        error = None if score.low is None or score.high is None else (score.high - score.low) / (2 * _Z)
        runs.append(_scored(score.model.name, score.source.rpartition("/")[0], score.value, error))
    return measure.title, measure.protocol, runs, notes


def _own(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if not score.model.published]


def _titled(measures: Iterable[Measure]) -> dict[str, Measure]:
    """Measures by title; those of one title by title and protocol."""
    measures = list(measures)
    titles = [measure.title for measure in measures]
    return {
        measure.title if titles.count(measure.title) == 1 else f"{measure.title} ({measure.protocol})": measure
        for measure in measures
    }


def _one(visual: str | None, titled: dict[str, _T], place: str) -> _T:
    """The visual score that is meant."""
    asked = (visual or "").casefold()
    found = [title for title in titled if title.casefold() == asked] or [
        title for title in titled if asked in title.casefold()
    ]
    if len(found) == 1:
        return titled[found[0]]
    if not titled:
        raise RequestError(f"{place} have no visual score in common: evaluate them on the same data")
    listed = "; ".join(found or titled)
    problem = f"{len(found)} visual scores" if found else f"no visual score {visual!r}"
    raise RequestError(f"{place} have {problem}: choose one with --visual ({listed})")


def _scored(name: str, folder: str, value: float, error: float | None) -> _Scored:
    run = RunFolder(folder)
    path = model_file(run.best)
    with storage.reading(path, "checkpoint"):
        # Parsing it as a document would import torch.
        content = storage.read_json(path)
    result = run.result()
    try:
        vision, language = (dict(content[side]["encoder"]) for side in ("vision", "language"))
        settings = {field: of for field, of in content["spec"].items() if field != "seed"}
    except (AttributeError, LookupError, TypeError, ValueError):
        raise RunError(f"{path} is damaged: {REMEDY}") from None
    return _Scored(name, value, error, vision, language, settings, None if result is None else result.training_pairs)


def _by_encoder(runs: Sequence[_Scored]) -> tuple[list["Seen"], list[str]]:
    """The scores of each language encoder over its seeds, and notes."""
    from sharelock_ray.study.affinity_study import Seen

    if _changed([run.vision for run in runs]):
        names = dict.fromkeys(str(run.vision.get("name")) for run in runs)
        raise RequestError(f"the runs have different vision encoders ({', '.join(names)}): give runs of one")
    groups: dict[str, list[_Scored]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.language, sort_keys=True)].append(run)
    for group in groups.values():
        if changed := _changed([run.settings for run in group]):
            raise RequestError(
                f"the runs {', '.join(run.name for run in group)} have one language encoder and differ in "
                f"{', '.join(changed)}: give runs that differ in the seed only"
            )
    notes = []
    if changed := _changed([run.settings for run in runs]):
        notes.append(f"the runs differ in more than the language encoder: {', '.join(changed)}")
    if len({run.pairs for run in runs}) > 1:
        notes.append("the runs were trained on different numbers of pairs")
    if len({len(group) for group in groups.values()}) > 1:
        notes.append("the language encoders have different numbers of seeds")
    seen = [
        Seen(
            encoder=str(group[0].language.get("name")),
            model=str(group[0].language.get("model")),
            runs=tuple(run.name for run in group),
            values=tuple(run.value for run in group),
            errors=tuple(run.error for run in group),
        )
        for group in groups.values()
    ]
    return seen, notes


def _changed(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The fields that differ."""
    fields = dict.fromkeys(field for each in settings for field in each)
    return [field for field in fields if any(each.get(field) != settings[0].get(field) for each in settings)]
