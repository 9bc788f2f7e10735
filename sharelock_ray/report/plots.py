"""What the pages' plots have in common."""

import io

from matplotlib.figure import Figure


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element, without the head of a file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    _, start, rest = buffer.getvalue().partition("<svg")
    return start + rest
