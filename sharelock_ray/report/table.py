"""Tables for a terminal. Cell texts are data: markup and control characters are escaped."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharelock_ray.progress import printable

_LOG_WIDTH = 140
"""Width if output is not a terminal."""


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
    """Prints a table to standard output."""
    Console(width=None if sys.stdout.isatty() else _LOG_WIDTH).print(table)


def _text(text: str) -> Text:
    # A plain string would be parsed for markup such as [bold] and :smile:.
    return Text(printable(text))
