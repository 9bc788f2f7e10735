"""The results of a worked study as one page, `results.html`, and as Markdown with its plots, `results.md`."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader

from sharelock_ray import storage

PAGE, MARKDOWN = "results.html", "results.md"


@dataclass(frozen=True)
class Plot:
    """An SVG element, with the name of its file and its caption."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A question with its answer.

    Args:
        rows: of the table below the text; the first one is its header.
    """

    title: str
    text: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    plots: tuple[Plot, ...] = ()


def write_results(title: str, summary: Sequence[str], sections: Sequence[Section], folder: str) -> str:
    """Writes both forms into the folder; returns the page's URI."""
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    page = environment.get_template(PAGE).render(title=title, summary=summary, sections=sections)
    lines = [f"# {title}", "", *_paragraphs(summary)]
    for section in sections:
        lines += [f"## {section.title}", "", *_paragraphs(section.text)]
        if section.rows:
            header, *rows = (f"| {' | '.join(map(_cell, row))} |" for row in section.rows)
            lines += [header, f"|{'---|' * len(section.rows[0])}", *rows, ""]
        for plot in section.plots:
            lines += [f"![{plot.caption}]({plot.name}.svg)", "", plot.caption, ""]
            storage.write_bytes(storage.join(folder, f"{plot.name}.svg"), plot.svg.encode())
    storage.write_bytes(storage.join(folder, MARKDOWN), "\n".join(lines).encode())
    uri = storage.join(folder, PAGE)
    storage.write_bytes(uri, page.encode())
    return uri


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in (text, "")]


def _cell(text: str) -> str:
    """A text in a table of Markdown, whose cells end at a bar."""
    return text.replace("|", r"\|")
