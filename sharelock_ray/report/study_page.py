"""`study.html`, `study.csv` and `study.parquet`: the effects of choices, compared with the variation between seeds."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from sharelock_ray import storage
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.report import matched_text
from sharelock_ray.report.data_scale import data_scales, expected, scale_plot
from sharelock_ray.report.plots import as_svg, plain
from sharelock_ray.report.summary import StudySummary, interval_text
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.effects import (
    Effect,
    heat_map,
    main_effects,
    pareto,
    ranked,
    variance_shares,
    with_doubles,
)
from sharelock_ray.study.matched import DOCUMENT, compare_matched
from sharelock_ray.study.trials import CHOSEN_ON_TEST, LOWER_IS_BETTER, Point, Study, Trial

PAGE = "study.html"
NAMES = {
    "validation_loss": "validation loss (nats)",
    "recall_at_1": "recall at 1",
    "zero_shot": "zero-shot accuracy",
    "parameters": "parameters",
    "seconds": "seconds of training",
}
"""Display names of objectives."""
_CURVES, _MAPS = 12, 8
_ONE_SEED = "A single seed does not show the variation by chance: add `tuning.seeds`."


def write_study(study: Study, folder: str) -> StudySummary:
    """Writes the page and both tables into the study's folder."""
    objective = study.objective[0]
    points = ranked(study.trials, objective)
    winner = storage.join(folder, "winner.yaml")
    scales, matched = data_scales(study), compare_matched(study) if study.matched else None
    scale_names = [_short(each.point) or study.title for each in scales]
    answers = [verdict(points, study.objective)]
    answers += [expected(scales[0], objective)] if len(scales) == 1 and scales[0].law else []
    if matched is not None:
        answers.append(matched_text.verdict(matched))
        storage.write_json(storage.join(folder, DOCUMENT), matched.content())
    states = Counter(trial.state for trial in study.trials)
    summary = StudySummary(
        title=study.title,
        page=storage.join(folder, PAGE),
        objective=objective,
        states={str(state): count for state, count in states.items()},
        points=tuple(points),
        verdict=" ".join(answers),
    )
    table = as_table(study.trials)
    csv, parquet = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, csv)
    pq.write_table(table, parquet)
    storage.write_bytes(storage.join(folder, "study.csv"), csv.getvalue().to_pybytes())
    storage.write_bytes(storage.join(folder, "study.parquet"), parquet.getvalue().to_pybytes())
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    shares = variance_shares(study.trials, study.axes, objective, study.doubles)
    effects = main_effects(study.trials, study.axes, objective, study.doubles)
    page = environment.get_template("study.html").render(
        study=study,
        summary=summary,
        states=", ".join(f"{count:,} {state}" for state, count in sorted(states.items())),
        names=NAMES,
        shown=[name for name in NAMES if points and name in points[0].values],
        text=interval_text,
        short=_short,
        name=_name,
        effects=_effects(effects, objective) if effects else "",
        basis=effects[0].basis if effects else "",
        any_idle=any(trial.without_effect for trial in study.trials),
        shares=shares,
        maps=_heat_maps(study, objective),
        fronts=[_front(points, objective, cost) for cost in ("parameters", "seconds")] if points else [],
        curves=_curves(points),
        scales=list(zip(scale_names, scales, strict=True)),
        scale_plot=scale_plot(scales, scale_names, objective, NAMES[objective]) if scales else "",
        bounds=_bounds,
        matched=matched,
        matched_rows=matched_text.rows(matched) if matched else [],
        matched_plot=matched_text.plot(matched, NAMES[matched.score]) if matched and matched.overall else "",
        others=[trial for trial in study.trials if trial.state not in ("finished", "pruned")],
        winner=storage.read_bytes(winner).decode() if points and storage.exists(winner) else "",
        winner_path=winner,
        cost=_cost(study.trials),
    )
    storage.write_bytes(summary.page, page.encode())
    return summary


def _bounds(of: Estimate) -> str:
    return f"{of.value:.3g} ({of.low:.3g} to {of.high:.3g})"


def verdict(points: Sequence[Point], objectives: Sequence[str]) -> str:
    """A sentence on the best point: its value, whether it differs significantly from others, and selection bias."""
    if not points:
        return "No trial finished."
    objective = objectives[0]
    best = f"Best: {_point(points[0])}, {NAMES[objective]} {interval_text(points[0].values[objective], objective)}."
    if "zero_shot" in objectives:
        best += f" {CHOSEN_ON_TEST}"
    others = len(points) - 1
    if not others:
        return best
    if points[0].seeds == 1:
        return f"{best} {_ONE_SEED}"
    tied = sum(point.is_tied for point in points[1:])
    by = f"paired t-tests over {points[0].seeds} seeds, at 5 % with Holm's correction for {others} comparisons"
    if not tied:
        return f"{best} It differs significantly from every other point ({by})."
    return f"{best} It does not differ significantly from {tied} of {others} other points ({by})."


def as_table(trials: Sequence[Trial]) -> pa.Table:
    """A table with one row per trial and one column per setting and value."""
    rows = []
    for trial in trials:
        row: dict[str, Any] = {name: _plain(value) for name, value in trial.point.items()}
        row |= {"without_effect": ", ".join(trial.without_effect), "seed": trial.seed, "state": trial.state}
        row |= {name: trial.values.get(name) for name in NAMES}
        row |= trial.model_dump(include={"steps", "device", "gpus", "joules", "reason", "run"})
        rows.append(row)
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        # A setting may have values of several kinds, such as 4 and "auto".
        mixed = len(kinds) > 1 and kinds != {int, float}
        columns[name] = pa.array([None if v is None else str(v) for v in values] if mixed else values)
    return pa.table(columns)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _short(point: Mapping[str, Any]) -> str:
    """A short description of a point: fields by their last name."""
    return ", ".join(f"{_name(axis)} {_value(value)}" for axis, value in point.items())


def _point(point: Point) -> str:
    """A short description of the settings that have an effect."""
    return _short({axis: value for axis, value in point.point.items() if axis not in point.without_effect}) or "any"


def _name(axis: str) -> str:
    return axis.rpartition(".")[2].replace("_", " ")


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _effects(effects: Sequence[Effect], objective: str) -> str:
    """Marginal means of all factors, side by side on one scale."""
    figure = Figure(figsize=(2 + 2 * len(effects), 3), layout="constrained")
    row = figure.subplots(1, len(effects), sharey=True, squeeze=False)[0]
    for axes, effect in zip(row, effects, strict=True):
        means = [level.mean for level in effect.levels]
        places = range(len(means))
        axes.plot(places, [mean.value for mean in means], "o-", color="#4c78a8", markersize=4)
        for place, mean in zip(places, means, strict=True):
            if mean.low is not None and mean.high is not None:
                axes.plot([place, place], [mean.low, mean.high], color="#4c78a8")
        axes.set_xticks(list(places), [plain(level.label) for level in effect.levels], rotation=30, fontsize=8)
        axes.set_xlim(-0.5, len(means) - 0.5)
        axes.set_title(plain(_name(effect.axis)), fontsize=10)
        axes.grid(alpha=0.3)
    row[0].set_ylabel(NAMES[objective])
    return as_svg(figure)


def _heat_maps(study: Study, objective: str) -> str:
    """Heat maps of depth by width if the space has both, else of its first two lists, per value of a third list."""
    lists = {axis: values for axis, values in study.axes.items() if values is not None and len(values) > 1}
    by_name = [axis for last in ("depth", "width") for axis in lists if axis.rpartition(".")[2] == last]
    shown = list(dict.fromkeys([*by_name, *lists]))[:3]
    if len(shown) < 2:
        return ""
    rows, columns = ((axis, lists[axis]) for axis in shown[:2])
    third: list[tuple[str, Any]] = [(shown[2], value) for value in lists[shown[2]]] if len(shown) > 2 else [("", None)]
    trials = with_doubles(study.trials, study.doubles)
    maps = []
    for axis, value in third[:_MAPS]:
        chosen = [trial for trial in trials if not axis or trial.point.get(axis) == value]
        maps.append((f"{_name(axis)} {_value(value)}" if axis else "", heat_map(chosen, rows, columns, objective)))
    known = np.concatenate([values[np.isfinite(values)] for _, values in maps])
    if not len(known):
        return ""
    figure = Figure(figsize=(1 + 2.6 * len(maps), 0.9 + 0.5 * len(rows[1])), layout="constrained")
    row = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    colours = "viridis_r" if objective in LOWER_IS_BETTER else "viridis"
    for axes, (title, values) in zip(row, maps, strict=True):
        image = axes.imshow(values, cmap=colours, vmin=known.min(), vmax=known.max(), aspect="auto")
        for i, j in itertools.product(*map(range, values.shape)):
            text = f"{values[i, j]:.3f}" if np.isfinite(values[i, j]) else "–"
            box = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1}
            axes.text(j, i, text, ha="center", va="center", fontsize=8, bbox=box)
        axes.set_xticks(range(len(columns[1])), [plain(_value(value)) for value in columns[1]], fontsize=8)
        axes.set_yticks(range(len(rows[1])), [plain(_value(value)) for value in rows[1]], fontsize=8)
        axes.set_xlabel(plain(_name(columns[0])))
        axes.set_title(plain(title), fontsize=10)
    row[0].set_ylabel(plain(_name(rows[0])))
    figure.colorbar(image, ax=list(row), label=NAMES[objective])
    return as_svg(figure)


def _front(points: Sequence[Point], objective: str, cost: str) -> str:
    """All points by quality and cost, with the Pareto front."""
    pairs = [(point.values[objective].value, point.values[cost].value) for point in points]
    front = pareto(pairs, "lower" if objective in LOWER_IS_BETTER else "higher", "lower")
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([pair[1] for pair in pairs], [pair[0] for pair in pairs], "o", color="#bbb", markersize=4)
    axes.plot(
        [pairs[i][1] for i in front], [pairs[i][0] for i in front], "o-", color="#d1495b", label="best trade-offs"
    )
    for i in front[:_CURVES]:
        axes.annotate(
            plain(_point(points[i])),
            (pairs[i][1], pairs[i][0]),
            fontsize=6,
            xytext=(3, 3),
            textcoords="offset points",
        )
    axes.set(xlabel=NAMES[cost], ylabel=NAMES[objective], xscale="log" if min(p[1] for p in pairs) > 0 else "linear")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return as_svg(figure)


def _curves(points: Sequence[Point]) -> str:
    """Validation loss by step of the best points and the worst, for the first seed of each."""
    if not points:
        return ""
    chosen = points[:_CURVES] if len(points) <= _CURVES else [*points[: _CURVES - 1], points[-1]]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for point in chosen:
        rows = [row for row in RunFolder(point.runs[0]).metrics() if "validation_loss" in row]
        if rows:
            axes.plot([r["step"] for r in rows], [r["validation_loss"] for r in rows], label=plain(_point(point)))
    axes.set(xlabel="optimizer step", ylabel=NAMES["validation_loss"])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_svg(figure)


def _cost(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """(name, value) pairs: time and energy of all trials."""
    seconds = sum(trial.values.get("seconds", 0.0) for trial in trials)
    gpu_hours = sum(trial.values.get("seconds", 0.0) * trial.gpus for trial in trials) / 3600
    counted = [trial.joules for trial in trials if trial.joules is not None]
    energy = f"{sum(counted) / 3.6e6:,.3f} kWh" if counted else "not reported by the devices"
    devices = ", ".join(sorted({trial.device for trial in trials if trial.device})) or "none"
    return [
        ("training, all finished trials", f"{seconds / 3600:,.2f} hours"),
        ("GPU-hours", f"{gpu_hours:,.2f}"),
        ("energy of the GPUs", energy),
        ("devices", devices),
    ]
