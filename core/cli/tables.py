"""Tables and lists of facts for people. A line is never cut: what is copied from it must be whole."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

_ANY_WIDTH = 1 << 16
_COLOURS = {
    "Running": "green",
    "Ready": "green",
    "Created": "cyan",
    "Exited": "yellow",
    "NotReady": "yellow",
    "Unknown": "red",
    "selected": "green",
    "broken": "red",
    "missing": "red",
    "misconfigured": "red",
    "true": "green",
    "false": "red",
}


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under titles; states have colours on a terminal."""
    from rich.console import Console

    Console(highlight=False, width=_ANY_WIDTH).print(make_table(titles, rows))


def make_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """Make a table without printing it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return table


def print_facts(facts: Iterable[tuple[str, str | Mapping[str, str]]]) -> None:
    """Print a fact a line; maps have a line for each key below their name."""
    for name, value in facts:
        if isinstance(value, str):
            click.echo(f"{click.style(name, bold=True)}: {value}")
        elif value:
            click.secho(f"{name}:", bold=True)
            for key in sorted(value):
                click.echo(f"  {key}: {value[key]}")
