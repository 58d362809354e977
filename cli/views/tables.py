"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000  # columns of an output that is not a terminal


@dataclass(frozen=True)
class Column:
    """The heading of a table's column, and how its cells are aligned."""

    name: str
    number: bool = False
    """Whether the cells are numbers, aligned right and never wrapped."""


def print_table(columns: Iterable[Column], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table. A cell may have several lines; long lines wrap on a terminal only."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(
            column.name, justify="right" if column.number else "left", no_wrap=column.number
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
