"""The power law of a study's score by the number of training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sharelock_ray.errors import RequestError
from sharelock_ray.report.plots import as_svg, plain
from sharelock_ray.report.summary import interval_text
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.study.power_law import PowerLaw, fit_power_law
from sharelock_ray.study.trials import SHARES, Interval, Study, Trial

AXIS = "alignment.training_pairs"
_BEYOND = 4
"""The curve is shown up to so many times the largest size."""


@dataclass(frozen=True)
class DataScale:
    """Scores by number of training pairs, of trials that differ in nothing else but the seed."""

    point: dict[str, Any]
    """Their values on the study's other axes."""
    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    law: PowerLaw | None
    reason: str = ""
    """Why there is no law."""


def data_scales(study: Study) -> list[DataScale]:
    """A fit for each combination of values on the other axes; none if the number of pairs is not an axis."""
    objective = study.objective[0]
    groups: dict[tuple[tuple[str, Any], ...], list[tuple[int, float]]] = {}
    for trial in study.trials if AXIS in study.axes else ():
        if trial.state == "finished" and (size := _size(trial)) is not None:
            rest = tuple((axis, trial.point[axis]) for axis in study.axes if axis != AXIS)
            groups.setdefault(rest, []).append((size, trial.values[objective]))
    found = []
    for rest, group in groups.items():
        sizes, scores = zip(*group, strict=True)
        law, reason = None, ""
        try:
            law = fit_power_law(sizes, scores, np.geomspace(min(sizes), _BEYOND * max(sizes), 40).tolist())
        except RequestError as error:
            reason = str(error)
        found.append(DataScale(dict(rest), sizes, scores, law, reason))
    return found


def expected(scale: DataScale, objective: str) -> str:
    """The score that the law expects of more data, in words."""
    assert scale.law is not None, "no law"
    at = Interval(**dict(scale.law.curve[-1]))
    return f"By the power law, {scale.law.sizes[-1]:,.0f} training pairs would give {interval_text(at, objective)}."


def scale_plot(scales: Sequence[DataScale], labels: Sequence[str], objective: str, title: str) -> str:
    """Trials and fitted curves, with the intervals of the curves."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    factor = 100 if objective in SHARES else 1
    for place, (each, label) in enumerate(zip(scales, labels, strict=True)):
        colour, scores = f"C{place % 10}", [factor * score for score in each.scores]
        axes.plot(each.sizes, scores, "o", color=colour, markersize=4, label=plain(label))
        if each.law is not None:
            low, value, high = (
                [factor * getattr(of, name) for of in each.law.curve] for name in ("low", "value", "high")
            )
            axes.fill_between(each.law.sizes, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(each.law.sizes, value, color=colour)
    axes.axvline(max(size for each in scales for size in each.sizes), color="#888", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="training pairs", ylabel=title + (" (%)" if factor == 100 else ""))
    axes.grid(alpha=0.3)
    if len(scales) > 1:
        axes.legend(frameon=False, fontsize=7)
    return as_svg(figure)


def _size(trial: Trial) -> int | None:
    """Its number of pairs; None if it trained on all, and its result is not there."""
    if trial.point[AXIS] is not None:
        return int(trial.point[AXIS])
    result = RunFolder(trial.run).result()
    return None if result is None else result.training_pairs
