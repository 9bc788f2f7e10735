"""`report.html`: one self-contained page about a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from sharelock_ray import storage
from sharelock_ray.evaluation.result import scores
from sharelock_ray.report.plots import as_svg
from sharelock_ray.report.summary import Summary


def write_page(summary: Summary) -> None:
    """Renders the page and publishes it at `summary.page`."""
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    template = environment.get_template("page.html")
    page = template.render(summary=summary, scores=scores, curves=_curves(summary.metrics))
    storage.write_bytes(summary.page, page.encode())


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Losses by step, as SVG."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["step"], row[name]) for row in metrics if name in row]
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="contrastive loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return as_svg(figure)
