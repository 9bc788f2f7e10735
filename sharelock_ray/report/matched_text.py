"""Encoder against decoder in words, as a table and as a plot."""

from matplotlib.figure import Figure

from sharelock_ray.report.plots import as_svg, plain
from sharelock_ray.report.summary import interval_text
from sharelock_ray.study.matched import Matched
from sharelock_ray.study.trials import Interval

_CHOSEN = "chosen for each"


def verdict(matched: Matched) -> str:
    """Which side is better, and whether a fixed pooling would decide otherwise."""
    if not matched.overall:
        return "No pair of models has finished with every seed."
    first = matched.overall[0]
    of = first.difference if first.pairs > 1 else matched.differences[0].over_seeds
    over = f"over {first.pairs} pairs of models" if first.pairs > 1 else "over the seeds of one pair of models"
    text = f"Encoder minus decoder, each with its chosen reading: {_shown(of, matched)} {over}."
    if of.low is None or of.high is None:
        text += " One seed has no interval, so this may be chance."
    elif of.low <= 0 <= of.high:
        text += " The interval includes 0: no difference is shown."
    encoders, decoders = map(", ".join, matched.leads)
    if encoders and decoders:
        text += f" A fixed pooling would decide: with {encoders}, encoders lead, and with {decoders}, decoders."
    elif encoders or decoders:
        text += f" With a fixed pooling ({encoders or decoders}), {'encoders' if encoders else 'decoders'} lead."
    return text


def rows(matched: Matched) -> list[tuple[str, ...]]:
    """Encoder, decoder, pooling, difference, and the interval over data sets; the differences of all pairs last."""
    pairs: list[tuple[str, ...]] = [
        (e.encoder, e.decoder, e.pooling or _CHOSEN, _shown(e.over_seeds, matched), _shown(e.over_data, matched))
        for e in matched.differences
    ]
    return pairs + [
        (f"all {e.pairs} pairs", "", e.pooling or _CHOSEN, _shown(e.difference, matched), "")
        for e in matched.overall
        if e.pairs > 1
    ]


def plot(matched: Matched, title: str) -> str:
    """Differences of each pair and of all, with the chosen readings and under each pooling."""
    poolings = [each.pooling for each in matched.overall]
    pairs = list(dict.fromkeys((each.encoder, each.decoder) for each in matched.differences))
    marks = [(pairs.index((e.encoder, e.decoder)), e.pooling, e.over_seeds) for e in matched.differences]
    marks += [(len(pairs), e.pooling, e.difference) for e in matched.overall if e.pairs > 1]
    names = [f"{_short(encoder)} −\n{_short(decoder)}" for encoder, decoder in pairs]
    names += ["all pairs"] * (len(pairs) > 1)
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(names) * max(2, len(poolings))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#888", linewidth=1)
    named: set[str | None] = set()
    for row, pooling, of in marks:
        place = poolings.index(pooling)
        y = row + 0.8 * ((place + 0.5) / len(poolings) - 0.5)
        colour, mark = ("black", "D") if pooling is None else (f"C{place - 1}", "o")
        if of.low is not None and of.high is not None:
            axes.plot([100 * of.low, 100 * of.high], [y, y], color=colour, linewidth=1)
        label = None if pooling in named else plain(pooling or _CHOSEN)
        named.add(pooling)
        axes.plot(100 * of.value, y, mark, color=colour, markersize=4, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{title}: encoder minus decoder (percentage points)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return as_svg(figure)


def _shown(of: Interval | None, matched: Matched) -> str:
    return interval_text(of, matched.score, signed=True)


def _short(model: str) -> str:
    """The last two parts of a model's name or path."""
    return plain("/".join(model.rstrip("/").split("/")[-2:]))
