"""Prints what was observed beside the step of the document, and keeps count of the arrows that were."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.printing import print_table
from demo.stories.document import Document

_WIDEST = 150
_STEP_SHARE = 0.42
_READING = """\
A line has the number of its arrow in the document's diagram. Lines come in the order in which things were observed:
the service, for instance, answers after its commit and publishes afterwards."""


class Narration:
    """The output of a story. A step is printed after it was observed, never before."""

    def __init__(self, console: Console, document: Document) -> None:
        self._console = console
        self._document = document
        self._diagram = -1
        # Positions of arrows in their diagram, from 0.
        self._seen: list[set[int]] = [set() for _ in document.diagrams]
        if not console.is_terminal:
            # Rich assumes 80 columns, too few for two texts side by side.
            console.width = _WIDEST
        self._width = min(console.width, _WIDEST)

    def diagram(self, number: int) -> None:
        """Begin the document's diagram ``number``, from 1: the following arrows are its arrows."""
        self._diagram = number - 1
        self.heading(f"diagram {number}: {self._document.diagrams[self._diagram].title}")

    def heading(self, text: str) -> None:
        """Print the heading of a part of the story."""
        self._console.print()
        self._console.print(Text(text, style="bold"), soft_wrap=True)

    def opening(self, name: str) -> None:
        """Print what is told, ``name`` of the document, and how to read it."""
        self.heading(f"the story of {name}")
        self._console.print(Text(_READING), soft_wrap=True)

    def arrow(self, line: str, observed: str, *, occurrence: int | None = None) -> None:
        """Print an arrow of the current diagram, as the document writes it, and what was observed of it.

        Of an arrow that the diagram draws several times, ``occurrence`` says which one it is, from 1; by default the
        first that was not observed yet. Raises ValueError for an arrow that the diagram does not have, or not so often.
        """
        seen, drawn = self._seen[self._diagram], self._document.diagrams[self._diagram].arrows
        places = [place for place, arrow in enumerate(drawn) if arrow == line]
        wanted = places[occurrence - 1 : occurrence] if occurrence else [place for place in places if place not in seen]
        if not wanted:
            none = "no further arrow" if places else "no arrow"
            raise ValueError(f"diagram {self._diagram + 1} of the document has {none} {line!r}")
        seen.add(wanted[0])
        self._row(f"{wanted[0] + 1}", line, observed)

    def passage(self, text: str, observed: str) -> None:
        """Print a passage of the document outside of the arrows, and what was observed of it.

        Raises ValueError for a text that the document does not have.
        """
        if text not in self._document.text:
            raise ValueError(f"the document does not say {text!r}")
        self._row("", text, observed)

    def unseen(self) -> list[str]:
        """Return a line for each arrow of the document that was not observed."""
        return [
            f"diagram {number}, arrow {place + 1}: {line} was not observed"
            for number, (diagram, seen) in enumerate(zip(self._document.diagrams, self._seen, strict=True), start=1)
            for place, line in enumerate(diagram.arrows)
            if place not in seen
        ]

    def count(self) -> int:
        """Return how many arrows were observed."""
        return sum(map(len, self._seen))

    def _row(self, number: str, step: str, observed: str) -> None:
        table = Table.grid(padding=(0, 1))
        step_width = int(self._width * _STEP_SHARE)
        table.add_column(width=2, justify="right", style="dim")
        table.add_column(width=step_width, style="cyan", overflow="fold")
        table.add_column(width=self._width - step_width - 6, overflow="fold")
        # Text objects: square brackets of positions are no markup.
        table.add_row(number, Text(step), Text(observed))
        print_table(self._console, table)
