"""What the printed tables have in common."""

from __future__ import annotations

from rich.table import Table

from .interleave import Rates


def new_table(title: str, first: str, *others: str) -> Table:
    """Return a table with right-aligned figures in every column but the first."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def times(ratio: float) -> str:
    """Return a ratio as text: "0.38x"."""
    return f"{ratio:.{0 if ratio >= 20 else 2}f}x"


def milliseconds(seconds: float) -> str:
    """Return a duration as text: "12.3 ms"."""
    return f"{1000 * seconds:,.1f} ms"


class RatioTable:
    """A table of rows that each compare two figures of the same run."""

    def __init__(self, title: str, caption: str) -> None:
        self.table = new_table(title, "measured", "", "against", "", "ratio", "aim")
        self.table.columns[2].justify = "left"
        self.table.caption = caption

    def add(self, measured: str, value: str, against: str, other: str, ratio: float, *, aim: str = "") -> None:
        """Add a row."""
        self.table.add_row(measured, value, against, other, times(ratio), aim)

    def add_figure(self, measured: str, value: str, *, aim: str = "") -> None:
        """Add a row that is compared with nothing but its aim."""
        self.table.add_row(measured, value, "", "", "", aim)

    def add_rate(self, measured: str, rates: Rates, name: str, against: str, other: str, *, aim: str = "") -> None:
        """Add a row with the rates of ``name`` and ``other``."""
        self.add(
            measured, f"{rates[name]:,.0f}/s", against, f"{rates[other]:,.0f}/s", rates.ratio(name, other), aim=aim
        )

    def add_cost(self, measured: str, rates: Rates, name: str, other: str) -> None:
        """Add a row with the factor by which an item takes longer than on empty tables."""
        ratio = rates.ratio(other, name)
        self.add(measured, f"{rates[name]:,.0f}/s", "empty tables", f"{rates[other]:,.0f}/s", ratio, aim="<= 1.2")
