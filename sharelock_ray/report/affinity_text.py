"""An affinity of seeing and language in words and as a table. Does not import matplotlib."""

from rich.table import Table

from sharelock_ray.report.table import text_table
from sharelock_ray.study.affinity_study import Affinity
from sharelock_ray.study.correlation import Bounds, Coefficient

NONE = "–"


def choice(of: Affinity) -> str:
    """How the language score was chosen."""
    score = f"{of.metric}, {of.harness}"
    if of.before:
        return f"{score}. Not the first choice: this folder had an analysis with {'; '.join(of.before)}."
    if of.named:
        return f"{score}. Named by the command, as chosen before the run."
    return f"{score}. Not named by the command: the only language score of its files."


def verdict(of: Affinity) -> str:
    """What the correlation shows, and what so many models can show."""
    r = of.pearson
    shown = (
        f"r = {r.value:.3f} over {len(of.points)} language models of {of.families} families, 95 % interval "
        f"{_either(r.by_models, of.fisher)}, p = {p_text(r)}."
    )
    better = "better language models see better" if (r.value < 0) is of.lower_is_better else "better ones see worse"
    finding = f"In this sample, {better}." if r.p < 0.05 else "No correlation is shown, and none is excluded."
    limits = (
        f"With {len(of.points)} models, |r| from {of.critical:.2f} is significant at 5 %, and a true |r| of "
        f"{of.detectable:.2f} is found with 80 % power."
    )
    return f"{shown} {finding} {limits}"


def rows(of: Affinity) -> list[tuple[str, str]]:
    """(name, value) of each statistic."""
    found = [
        (
            name,
            f"{each.value:.3f}; over models {bounds_text(each.by_models)}; over families "
            f"{bounds_text(each.by_families)}; p = {p_text(each)}",
        )
        for name, each in (("Pearson's r", of.pearson), ("Spearman's rho", of.spearman), ("Kendall's tau", of.kendall))
    ]
    found.append(("r, interval by Fisher", bounds_text(of.fisher)))
    for name, left in (("model", of.without_model), ("family", of.without_family)):
        if left:
            low, high = (each(left, key=left.__getitem__) for each in (min, max))
            text = f"{left[low]:.3f} (without {low}) to {left[high]:.3f} (without {high})"
            found.append((f"r without one {name}", text))
    for name, partial in (("r given log parameters", of.given_size), ("r within families", of.within_families)):
        text = (
            "too few models, or a variable explains a score"
            if partial is None
            else f"{partial.value:.3f}, {bounds_text((partial.low, partial.high))}, p = {partial.p:.3g}, "
            f"{partial.models} models"
        )
        found.append((name, text))
    errors = of.measurement
    found.append(("r if measured again", bounds_text(errors.again)))
    corrected = NONE if errors.corrected is None else f"{errors.corrected:.3f}"
    reliability = f"reliability {errors.reliability_x:.3f} of language, {errors.reliability_y:.3f} of vision"
    found.append(("r without errors", f"{corrected}; {reliability}"))
    found.append(("critical |r|, and detectable with 80 % power", f"{of.critical:.3f}, {of.detectable:.3f}"))
    by_line, by_mean = 100 * of.line.left_out, 100 * of.line.left_out_mean
    text = f"{by_line:.1f} points by the line of the others, {by_mean:.1f} by their mean"
    found.append(("error of predicting a model that is left out", text))
    for name, new in of.predictions.items():
        seen = new.visual
        interval = f"{seen.value:.1%}, 95 % interval {seen.low:.1%} to {seen.high:.1%}"
        outside = ", outside the study" if seen.extrapolates else ""
        found.append((f"predicted: {name}", f"{interval} (language score {new.language:.4g}{outside})"))
    for other in of.others:
        test = other.difference
        compared = "" if test is None else f"; against the chosen score: t = {test.t:.2f}, p = {test.p:.3g}"
        found.append(
            (
                f"other score: {other.metric}, {other.harness}",
                f"r = {other.r:.3f}, {other.models} models, p = {other.p:.3g}, with Holm's correction "
                f"{other.p_holm:.3g}{compared}",
            )
        )
    return found


def table(of: Affinity) -> Table:
    """For a terminal."""
    lines = [("visual score", of.visual), ("language score", choice(of)), ("result", verdict(of)), *rows(of)]
    return text_table([], [*lines, *(("note", note) for note in of.notes)])


def bounds_text(bounds: Bounds | None) -> str:
    """An interval; a dash if there is none."""
    return NONE if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def p_text(of: Coefficient) -> str:
    """A p-value, and whether it counts all permutations."""
    return f"{of.p:.3g}{' (exact)' if of.exact else ''}"


def _either(resampled: Bounds | None, by_formula: Bounds) -> str:
    return f"{bounds_text(resampled)} (bootstrap)" if resampled else f"{bounds_text(by_formula)} (Fisher)"
