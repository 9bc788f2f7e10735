"""What the pages' plots have in common."""

import io

from matplotlib.figure import Figure

from sharelock_ray.progress import printable

_LETTERS = 48
"""Of a text of the data in a plot; a longer one would leave no room for what is plotted."""


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element, without the head of a file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    _, start, rest = buffer.getvalue().partition("<svg")
    return start + rest


def plain(text: str) -> str:
    """A text of the data as matplotlib is to be given it: no mathematics between dollars, one line, not too long."""
    line = printable(text)
    short = line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}…"
    return short.replace("$", r"\$")
