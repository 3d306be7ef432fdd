"""Prints tables without the blanks that fill their rows up, where the output is not a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(console: Console, table: Table) -> None:
    """Print a table; a file gets its rows without blanks at their ends."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), highlight=False, markup=False, emoji=False, soft_wrap=True)
