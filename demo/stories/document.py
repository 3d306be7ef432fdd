"""Reads the sequence diagrams of a document: its arrows as the document writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HEADING = re.compile(r"#+ +(?P<text>.+)")
_ARROW = re.compile(r"(?P<source>[^:>]+?) *(?P<head>--?>>) *(?P<target>[^:]+?) *: *(?P<text>.+)")
_BEGIN, _END = "sequenceDiagram", "```"


@dataclass(frozen=True, slots=True)
class Diagram:
    """A sequence diagram: the heading above it and its arrows, ``A->>B: text``, in order and each as often as drawn."""

    title: str
    arrows: Sequence[str]


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its whole text and its sequence diagrams."""

    text: str
    diagrams: Sequence[Diagram]


def read_document(path: Path) -> Document:
    """Read a document in Markdown with diagrams in Mermaid. Raises OSError if there is none."""
    text = path.read_text()
    diagrams: list[Diagram] = []
    title = ""
    # None outside of diagrams.
    arrows: list[str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line == _BEGIN:
            arrows = []
        elif arrows is None:
            title = found["text"] if (found := _HEADING.fullmatch(line)) else title
        elif line == _END:
            diagrams.append(Diagram(title, arrows))
            arrows = None
        elif arrow := _ARROW.fullmatch(line):
            arrows.append("{source}{head}{target}: {text}".format(**arrow.groupdict()))
    return Document(text, diagrams)
