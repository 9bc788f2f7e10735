"""Tables for a terminal. What stands in them is data: never markup, never anything that a terminal obeys."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharelock_ray.progress import printable

_LOG_WIDTH = 140
"""Columns where nobody's terminal says how many there are."""


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, caption: str | None = None
) -> Table:
    """A table of texts; without a header where `header` is empty."""
    rows = list(rows)
    table = Table(show_header=bool(header), title_justify="left", caption_justify="left")
    table.title, table.caption = (None if text is None else _text(text) for text in (title, caption))
    for name in header or [""] * max(map(len, rows), default=0):
        table.add_column(_text(name))
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def print_table(table: Table) -> None:
    """On standard output."""
    Console(width=None if sys.stdout.isatty() else _LOG_WIDTH).print(table)


def _text(text: str) -> Text:
    # A plain string would be read as markup, as in [bold], and for emoji, as in :smile:.
    return Text(printable(text))
