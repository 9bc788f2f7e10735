"""`affinity.html`, `affinity.csv` and `affinity.parquet`: visual scores against a language score, over models."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from sharelock_ray import storage
from sharelock_ray.report import affinity_text
from sharelock_ray.report.plots import as_svg, plain
from sharelock_ray.study.affinity_study import Affinity

PAGE = "affinity.html"
_BLUE, _RED, _GREY = "#4c78a8", "#d1495b", "#888"
_TEXT, _NUMBER = pa.string(), pa.float64()
_SCHEMA = pa.schema(
    {
        "encoder": _TEXT,
        "model": _TEXT,
        "family": _TEXT,
        "params_b": _NUMBER,
        "visual": _NUMBER,
        "visual_error": _NUMBER,
        "metric": _TEXT,
        "harness": _TEXT,
        "language": _NUMBER,
        "language_error": _NUMBER,
        "at_chance": pa.bool_(),
        "fitted": _NUMBER,
        "r_without": _NUMBER,
        "source": _TEXT,
        "source_date": _TEXT,
        "runs": _TEXT,
    }
)


def write_affinity(affinity: Affinity, folder: str) -> None:
    """Writes the page and both tables into the folder."""
    rows = [
        point.model_dump()
        | {
            "metric": affinity.metric,
            "harness": affinity.harness,
            "fitted": affinity.line.band(point.language).value,
            "r_without": affinity.without_model.get(point.encoder),
            "runs": ", ".join(point.runs),
        }
        for point in affinity.points
    ]
    table = pa.Table.from_pylist(rows, _SCHEMA)
    csv, parquet = pa.BufferOutputStream(), pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, csv)
    pq.write_table(table, parquet)
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    page = environment.get_template(PAGE).render(
        affinity=affinity,
        choice=affinity_text.choice(affinity),
        verdict=affinity_text.verdict(affinity),
        rows=affinity_text.rows(affinity),
        scatter=scatter(affinity),
        leaving=_leaving_out(affinity),
    )
    storage.write_bytes(storage.join(folder, "affinity.csv"), csv.getvalue().to_pybytes())
    storage.write_bytes(storage.join(folder, "affinity.parquet"), parquet.getvalue().to_pybytes())
    storage.write_bytes(storage.join(folder, PAGE), page.encode())


def scatter(affinity: Affinity) -> str:
    """All models with their names, the line with both bands, and predicted models."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    known = [*(point.language for point in affinity.points), *(each.language for each in affinity.predictions.values())]
    margin = 0.05 * np.ptp(known)
    along = np.linspace(min(known) - margin, max(known) + margin, 60)
    for of, opacity in ((affinity.line.predict, 0.08), (affinity.line.band, 0.2)):
        bounds = [of(float(x)) for x in along]
        low, high = ([100 * getattr(each, name) for each in bounds] for name in ("low", "high"))
        axes.fill_between(along, low, high, color=_BLUE, alpha=opacity, linewidth=0)
    axes.plot(along, [100 * affinity.line.band(float(x)).value for x in along], color=_BLUE)
    families = list(dict.fromkeys(point.family for point in affinity.points))
    ordered = sorted(affinity.points, key=lambda point: point.language)
    labels = []
    for point in ordered:
        colour = f"C{families.index(point.family) % 10}"
        axes.errorbar(
            point.language,
            100 * point.visual,
            xerr=1.96 * (point.language_error or 0),
            yerr=196 * (point.visual_error or 0),
            fmt="o",
            color=colour,
            markerfacecolor="white" if point.at_chance else colour,
            markersize=5,
            linewidth=0.8,
        )
        labels.append((point.encoder, point.language, point.visual, "black"))
    for name, new in affinity.predictions.items():
        seen = new.visual
        axes.plot([new.language] * 2, [100 * seen.low, 100 * seen.high], color=_GREY, linewidth=1)
        axes.plot(new.language, 100 * seen.value, "D", color=_GREY, markersize=5)
        labels.append((name, new.language, seen.value, _GREY))
    for place, (name, x, y, colour) in enumerate(labels):
        # Inside the plot at its ends, and neighbours apart: in turn above and below, right and left.
        along_plot = (x - min(known)) / np.ptp(known)
        is_left = along_plot > 0.75 or (along_plot > 0.25 and place % 2 == 0)
        axes.annotate(
            plain(name),
            (x, 100 * y),
            xytext=(-4 if is_left else 4, 4 if place % 2 else -9),
            textcoords="offset points",
            ha="right" if is_left else "left",
            fontsize=7,
            color=colour,
        )
    axes.set(xlabel=plain(affinity.metric), ylabel=f"{plain(affinity.visual)} (%)")
    axes.grid(alpha=0.3)
    return as_svg(figure)


def _leaving_out(affinity: Affinity) -> str:
    """Pearson's r without each model and each family."""
    left = [(name, r, _BLUE) for name, r in affinity.without_model.items()]
    # Families of one model are models.
    if affinity.families < len(affinity.points):
        left += [(f"{name} (family)", r, _RED) for name, r in affinity.without_family.items()]
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(left)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(affinity.pearson.value, color=_GREY)
    for critical in (-affinity.critical, affinity.critical):
        axes.axvline(critical, color=_GREY, linestyle="--", linewidth=1)
    for place, (_, r, colour) in enumerate(left):
        axes.plot(r, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(left)), [plain(name) for name, _, _ in left], fontsize=8)
    axes.set_ylim(len(left) - 0.5, -0.5)
    axes.set_xlim(-1.02, 1.02)
    axes.set_xlabel("Pearson's r without it")
    axes.grid(alpha=0.3, axis="x")
    return as_svg(figure)
