"""The documents of the service as pages: runbooks, and what they refer to.

The addresses below ``/ops/docs/`` are those of the files below ``docs/``: links between the files work unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from posixpath import dirname, join, normpath
from typing import NamedTuple

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe
from markdown_it import MarkdownIt
from markdown_it.token import Token

from kafka_bridge.models import Alert

from .access import staff_page
from .layout import render_page

_FOLDER = settings.BASE_DIR / "docs"
_PREFIX = "docs/"
_RUNBOOK = re.compile(r"runbooks/([a-z0-9-]+)\.md")


class Heading(NamedTuple):
    text: str
    anchor: str


class Document(NamedTuple):
    """``summary``: its first paragraph as text. ``headings``: those of the second level, for the contents."""

    title: str
    html: SafeString
    summary: str
    headings: tuple[Heading, ...]


class Entry(NamedTuple):
    """A document in the list of documents."""

    title: str
    address: str
    summary: str


@require_safe
@staff_page("kafka_bridge.view_alert")
def documents(request: HttpRequest) -> HttpResponse:
    """List the runbooks and the other documents."""
    runbooks = {f"runbooks/{name}.md" for name in runbook_names()}
    context = {"runbooks": _entries(runbooks), "documents": _entries(_names() - runbooks)}
    return render_page(request, "ops/documents.html", context)


@require_safe
@staff_page("kafka_bridge.view_alert")
def document(request: HttpRequest, name: str) -> HttpResponse:
    """Show the document ``name``, a path below ``docs/``."""
    if name not in _names():
        raise Http404
    return render_page(request, "ops/document.html", {"document": _rendered(name)})


def with_runbooks(alerts: Iterable[Alert]) -> list[Alert]:
    """Return ``alerts`` with ``runbook_address``: the page of the runbook, empty if there is no such document."""
    found = list(alerts)
    for alert in found:
        vars(alert)["runbook_address"] = document_address(alert.runbook)
    return found


def document_address(path: str) -> str:
    """Return the address of the page of ``docs/<name>`` (with or without ``#<heading>``), empty if there is none."""
    file, mark, heading = path.removeprefix(_PREFIX).partition("#")
    if not path.startswith(_PREFIX) or file not in _names():
        return ""
    return f"{reverse('ops:document', args=[file])}{mark}{heading}"


def runbook_names() -> set[str]:
    """Return the names of the runbooks, which are those of the rules of all processes."""
    return {match[1] for name in _names() if (match := _RUNBOOK.fullmatch(name))}


def _entries(names: Iterable[str]) -> list[Entry]:
    return [
        Entry(found.title, reverse("ops:document", args=[name]), found.summary)
        for name, found in sorted((name, _rendered(name)) for name in names)
    ]


@cache
def _names() -> frozenset[str]:
    return frozenset(path.relative_to(_FOLDER).as_posix() for path in _FOLDER.rglob("*.md"))


@cache
def _rendered(name: str) -> Document:
    # Without HTML, whatever the file holds is text.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((_FOLDER / name).read_text())
    for opening, content, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opening.type == "th_open" and not content.content:
            # A header without text says nothing to a screen reader.
            opening.tag = closing.tag = "td"
        if content.children:
            content.children = _without_links_elsewhere(content.children, name)
    title = name
    summary = next((_plain(b) for a, b in pairwise(tokens) if a.type == "paragraph_open" and not a.level), "")
    headings = []
    anchors: set[str] = set()
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            if (anchor := _anchor(content.content)) and anchor not in anchors:
                anchors.add(anchor)
                heading.attrSet("id", anchor)
                if heading.tag == "h2":
                    headings.append(Heading(_plain(content), anchor))
            if heading.tag == "h1" and title == name:
                title = _plain(content)
    html = markdown.renderer.render(_with_scrolling_tables(tokens), markdown.options, {})
    return Document(title, mark_safe(html), summary, tuple(headings))


def _plain(content: Token) -> str:
    """Return the text of a heading or paragraph without its marks."""
    return "".join(" " if part.type == "softbreak" else part.content for part in content.children or ())


def _anchor(heading: str) -> str:
    """Return the anchor that links between the files use for a heading: GitHub's."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _without_links_elsewhere(parts: Sequence[Token], name: str) -> list[Token]:
    """Return the parts of a text without links to files beside ``docs/``, whose text stays: they are no pages."""
    kept: list[Token] = []
    is_elsewhere = False
    for part in parts:
        if part.type == "link_open":
            target = str(part.attrGet("href"))
            is_elsewhere = ":" not in target and normpath(join(dirname(name), target)).startswith("..")
        if not (is_elsewhere and part.type in ("link_open", "link_close")):
            kept.append(part)
    return kept


def _with_scrolling_tables(tokens: list[Token]) -> list[Token]:
    """Return ``tokens`` with each table in an element that scrolls sideways, reachable by the keyboard."""
    wrapped: list[Token] = []
    for token in tokens:
        if token.type == "table_open":
            attributes: dict[str, str | int | float] = {
                "class": "scroll", "tabindex": 0, "role": "group", "aria-label": "Table",
            }  # fmt: skip
            wrapped.append(Token("scroll_open", "div", 1, attrs=attributes, block=True))
        wrapped.append(token)
        if token.type == "table_close":
            wrapped.append(Token("scroll_close", "div", -1, block=True))
    return wrapped
