"""Small tables for people."""

import sys
from collections.abc import Sequence

from offmap.report.words import printable

WIDE = 200
"""Columns assumed where there is no terminal, so that nothing is cut in a file or a pipe."""


def show(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", err: bool = False) -> None:
    """Print a table; numbers are aligned to the right.

    Args:
        columns: headings.
        rows: one cell a column; None is shown as an empty cell.
        title: line above the table.
        err: to standard error instead of standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if err else sys.stdout
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for i, heading in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(cell)) for cell in row))
    Console(file=stream, width=None if stream.isatty() else WIDE, highlight=False).print(table)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.3g}" if isinstance(cell, float) else printable(str(cell))
