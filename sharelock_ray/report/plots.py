"""Helpers for the plots of the pages."""

import io

from matplotlib.figure import Figure

from sharelock_ray.progress import printable

_LETTERS = 48
"""Maximum length of a text from the data in a plot."""


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element, without the XML header."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    _, start, rest = buffer.getvalue().partition("<svg")
    return start + rest


def plain(text: str) -> str:
    """A text from the data for matplotlib: one line, truncated, with `$` escaped."""
    line = printable(text)
    short = line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}…"
    return short.replace("$", r"\$")
