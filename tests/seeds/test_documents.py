"""docs/seeds.md names everything that the five documents name, and what it names is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("000", "001", "002", "003", "004")
PAGE = (ROOT / "docs" / "seeds.md").read_text()

# What a document calls by a name: types and methods of its code, topics, groups and settings, addresses, figures.
NAMES = {
    "class": re.compile(r"\b[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+\b"),
    "method or field": re.compile(r"\b[a-z]+(?:[A-Z][a-z0-9]*)+\b"),
    "topic, group or setting": re.compile(r"(?<![\w-])(?:[a-z]+|DLQ)(?:-[a-z]+)+(?:\.DLT)?(?!\w)"),
    "dotted setting": re.compile(r"(?<![\w.])[a-z]+(?:\.[a-z]+)+(?![\w(])"),
    "constant": re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b"),
    "address": re.compile(r"\b(?:GET|POST) (/\S+)"),
    "annotation": re.compile(r"@[A-Z]\w+"),
    "figure": re.compile(r"\d+(?:[.,-]\d+)*\s?(?:ms|req/s|TPS|%|배)"),
}
PARTICIPANT = re.compile(r"^\s*(?:participant|actor)\s+(\S+?)(?:\s+as\s+(.+?))?\s*$", re.MULTILINE)
# Mermaid's word for a diagram, getters and parameters of code that is shown, parts of a file name.
NO_NAMES = {"sequenceDiagram", "compose.yml", "getCouponId", "getMessage", "getRequestId", "getUserId", "groupId"}

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
SETTING = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]+|[\w-]+\.(?:yml|md|env)")


def document(number: str) -> str:
    return (ROOT / "seeds" / f"seed-{number}.md").read_text()


def section(number: str) -> str:
    """Of the page: the part about the document, and the figures, which are listed together."""
    about = PAGE.split(f"\n## {number}\n")[1].split("\n## ")[0]
    return about + PAGE.split("\n## Estimated and measured\n")[1].split("\n## ")[0]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("number", DOCUMENTS)
@pytest.mark.parametrize("kind", NAMES)
def test_every_name_of_the_document_is_on_the_page(number: str, kind: str) -> None:
    listed = squeezed(section(number))
    names = set(NAMES[kind].findall(document(number))) - NO_NAMES
    assert {name for name in names if squeezed(name) not in listed} == set()


def test_the_documents_have_names_of_every_kind() -> None:
    everything = "".join(map(document, DOCUMENTS))
    assert {kind for kind, pattern in NAMES.items() if not pattern.search(everything)} == set()


@pytest.mark.parametrize("number", DOCUMENTS)
def test_every_participant_of_a_diagram_is_on_the_page(number: str) -> None:
    listed = section(number)
    participants = PARTICIPANT.findall(document(number))
    assert participants
    missing = {name for pair in participants for name in pair if name and name not in listed}
    assert missing == set()


def test_every_file_and_test_that_the_page_names_is_there() -> None:
    named = {
        text
        for text in CODE.findall(PAGE)
        if PATH.fullmatch(text.split("::")[0]) and (ROOT / text.split("/")[0]).exists()
    }
    assert len(named) > 50
    for text in named:
        path, *tests = text.split("::")
        assert (ROOT / path).exists(), text
        for test in tests:
            assert f"def {test}(" in (ROOT / path).read_text(), text


def test_every_link_of_the_page_leads_to_a_heading_or_a_file() -> None:
    for path, anchor in LINK.findall(PAGE):
        target = (ROOT / "docs" / path) if path else ROOT / "docs" / "seeds.md"
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\s-]", "", name).lower().replace(" ", "-") for name in headings}


def test_every_setting_that_the_page_names_exists() -> None:
    devstack = [path.read_text() for path in (ROOT / "devstack").glob("*.py")]
    known = "".join([(ROOT / ".env.example").read_text(), *devstack, *map(document, DOCUMENTS)])
    names = {name for code in CODE.findall(PAGE) for name in SETTING.findall(code)}
    assert {name for name in names if not re.search(rf"\b{name}\b", known)} == set()


@pytest.mark.parametrize("number", DOCUMENTS)
def test_every_json_of_the_settings_is_read(number: str) -> None:
    text = (ROOT / "seeds" / f"seed-{number}.env").read_text()
    values = re.findall(r"^\w+='(.*?)'$", text, re.MULTILINE | re.DOTALL)
    assert values
    for value in values:
        assert isinstance(json.loads(value), dict)
