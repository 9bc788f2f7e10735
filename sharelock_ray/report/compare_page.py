"""`compare.html`, and `compare` and `compare-paired` as CSV and Parquet: scores of runs beside published ones, and the
runs in pairs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharelock_ray import storage
from sharelock_ray.report.comparison import (
    PAGE,
    PAIRED_HEADER,
    Comparison,
    Measure,
    Model,
    PairedScore,
    Score,
    model_text,
    paired_texts,
    value_texts,
)
from sharelock_ray.report.plots import as_svg, plain

_BLUE, _GREY, _CHANCE = "#4c78a8", "#888", "#d1495b"
_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
_MEASURE = {
    "task": _TEXT,
    "dataset": _TEXT,
    "split": _TEXT,
    "candidate_set": _TEXT,
    "language": _TEXT,
    "kind": _TEXT,
    "metric": _TEXT,
    "items": _COUNT,
    "n": _COUNT,
    "candidates": _COUNT,
    "ties": _TEXT,
    "class_digest": _TEXT,
    "truth_digest": _TEXT,
}
_SCHEMA = pa.schema(
    {
        "model": _TEXT,
        "published": pa.bool_(),
        "vision": _TEXT,
        "language_model": _TEXT,
        "data": _TEXT,
        **_MEASURE,
        "value": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
        "chance": _NUMBER,
        "tied": _COUNT,
        "source": _TEXT,
        "second_hand": pa.bool_(),
        "note": _TEXT,
    }
)
_PAIRED_SCHEMA = pa.schema(
    {
        "model": _TEXT,
        "compared_with": _TEXT,
        **_MEASURE,
        "difference": _NUMBER,
        "low": _NUMBER,
        "high": _NUMBER,
        "test": _TEXT,
        "p": _NUMBER,
        "p_holm": _NUMBER,
        "first_only": _COUNT,
        "model_only": _COUNT,
    }
)


def write_comparison(comparison: Comparison, folder: str) -> None:
    """Writes the page and the tables into the folder."""
    groups, main = comparison.groups, comparison.main
    overview = {of: {score.model: score for score in scores} for of, scores in comparison.overview.items()}
    others = [model for scores in overview.values() for model in scores if model.published]
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    page = environment.get_template("compare.html").render(
        comparison=comparison,
        overview=overview,
        models=[*comparison.runs, *dict.fromkeys(others)],
        figures=_figures(main),
        differences=_forests(comparison.paired),
        paired_header=PAIRED_HEADER,
        paired_texts=paired_texts,
        tables=[
            ("Main scores", main, True),
            ("Other scores", {of: scores for of, scores in groups.items() if of not in main}, False),
        ],
        published=_published(comparison),
        model_text=model_text,
        value_texts=value_texts,
    )
    _write_table(folder, "compare", [score.row() for score in comparison.scores], _SCHEMA)
    _write_table(folder, "compare-paired", [each.row() for each in comparison.paired], _PAIRED_SCHEMA)
    storage.write_bytes(storage.join(folder, PAGE), page.encode())


def _write_table(folder: str, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(rows, schema)
    csv, parquet = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, csv)
    pq.write_table(table, parquet)
    storage.write_bytes(storage.join(folder, f"{name}.csv"), csv.getvalue().to_pybytes())
    storage.write_bytes(storage.join(folder, f"{name}.parquet"), parquet.getvalue().to_pybytes())


def _published(comparison: Comparison) -> dict[Model, dict[tuple[str, bool], list[Score]]]:
    """The published scores of each model, by source and whether it was read second-hand."""
    found: dict[Model, dict[tuple[str, bool], list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in comparison.scores:
        if score.model.published:
            found[score.model][score.source, score.second_hand].append(score)
    return found


def _figures(groups: dict[Measure, list[Score]]) -> list[str]:
    """One plot of all models for each measure, or of all languages for those that differ in the language only."""
    families: dict[tuple[str, str | None, str | None, str, bool], dict[Measure, list[Score]]] = defaultdict(dict)
    for of, scores in groups.items():
        families[of.task, of.dataset, of.split, of.metric, of.language is not None][of] = scores
    figures = []
    for family in families.values():
        languages = {of.language for of in family}
        if len(languages) > 1:
            figures.append(_of_languages(family))
        else:
            figures += [_of_models(of, scores) for of, scores in family.items()]
    return figures


def _of_models(measure: Measure, scores: Sequence[Score]) -> str:
    """Values with intervals, one line for each model; hollow marks are published values."""
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(scores)), layout="constrained")
    axes = figure.add_subplot()
    for place, score in enumerate(scores):
        _mark(axes, score, place, _GREY if score.model.published else _BLUE)
    _chance(axes, scores, -0.5, len(scores) - 0.5)
    axes.set_yticks(range(len(scores)), [plain(model_text(score.model)) for score in scores], fontsize=8)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_title(plain(measure.title), fontsize=10)
    return _finished(figure, f"{measure.metric} (%)")


def _of_languages(family: dict[Measure, list[Score]]) -> str:
    """Values of the runs by language, the highest mean first; each run has its colour."""
    groups = {of: [score for score in scores if not score.model.published] for of, scores in family.items()}
    ordered = sorted(groups, key=lambda of: -np.mean([score.value for score in groups[of]]))
    runs = list(dict.fromkeys(score.model for of in ordered for score in groups[of]))
    figure = Figure(figsize=(8, 1.1 + (0.08 + 0.12 * len(runs)) * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        axes.plot([], [], "o", color=f"C{index}", label=plain(model_text(run)))
    for place, of in enumerate(ordered):
        for score in groups[of]:
            index = runs.index(score.model)
            _mark(axes, score, place + 0.7 * ((index + 0.5) / len(runs) - 0.5), f"C{index}")
        _chance(axes, groups[of], place - 0.4, place + 0.4)
    axes.set_yticks(range(len(ordered)), [plain(of.language or "") for of in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    first = ordered[0]
    axes.set_title(plain(f"{first.dataset or f'{first.split} split'}, by language: {first.metric}"), fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return _finished(figure, f"{first.metric} (%)")


def _forests(paired: Sequence[PairedScore]) -> list[str]:
    """Differences with intervals, one plot for each run that is compared with the first."""
    by_run: dict[Model, list[PairedScore]] = defaultdict(list)
    for each in paired:
        by_run[each.model].append(each)
    figures = []
    for run, found in by_run.items():
        figure = Figure(figsize=(8, 0.9 + 0.25 * len(found)), layout="constrained")
        axes = figure.add_subplot()
        for place, each in enumerate(found):
            low, value, high = (100 * x for x in (each.difference.low, each.difference.value, each.difference.high))
            colour = _BLUE if each.p_holm < 0.05 else _GREY
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axes.plot(value, place, "o", color=colour, markersize=5)
        axes.axvline(0, linestyle="--", color=_CHANCE, linewidth=1)
        axes.set_yticks(range(len(found)), [plain(each.measure.title) for each in found], fontsize=8)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(plain(f"{run.name} minus {found[0].first.name}"), fontsize=10)
        figures.append(_finished(figure, "difference in percentage points"))
    return figures


def _mark(axes: Axes, score: Score, height: float, colour: str) -> None:
    if score.low is not None and score.high is not None:
        axes.plot([100 * score.low, 100 * score.high], [height, height], color=colour, linewidth=1.5)
    fill = "white" if score.model.published else colour
    axes.plot(100 * score.value, height, "o", color=colour, markerfacecolor=fill, markersize=5)


def _chance(axes: Axes, scores: Sequence[Score], top: float, bottom: float) -> None:
    levels = {score.chance for score in scores if score.chance is not None}
    for level in levels:
        axes.plot([100 * level, 100 * level], [top, bottom], "--", color=_CHANCE, linewidth=1)


def _finished(figure: Figure, label: str) -> str:
    (axes,) = figure.axes
    axes.set_xlabel(label)
    axes.grid(alpha=0.3, axis="x")
    return as_svg(figure)
