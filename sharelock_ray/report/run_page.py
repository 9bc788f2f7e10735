"""`report.html`: one self-contained page about a run."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from sharelock_ray import storage
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.report.plots import as_svg
from sharelock_ray.report.summary import Summary

_THUMBNAIL = 128


def write_page(summary: Summary, images: Mapping[str, bytes]) -> None:
    """Renders the page and publishes it at `summary.page`.

    Args:
        images: image files of the evaluation's examples, by key.

    Raises:
        RequestError: an image cannot be decoded.
    """
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    zero_shot = summary.evaluation.zero_shot
    page = environment.get_template("page.html").render(
        summary=summary,
        curves=_curves(summary.metrics),
        per_class=sorted(zero_shot.among_present.per_class.items(), key=lambda item: -item[1]) if zero_shot else [],
        chance=zero_shot.among_present.chance if zero_shot else 0,
        examples=[(_thumbnail(images[example.key], example.key), example) for example in summary.evaluation.examples],
    )
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


def _thumbnail(data: bytes, key: str) -> str:
    """A small PNG as a data URI."""
    small = upright_image(data, key)
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
