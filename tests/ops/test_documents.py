"""Runbooks and the other documents as pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from couponsite.ops.documents import document_address
from kafka_bridge.models import Alert
from tests.admin.pages import html_of

DOCS = settings.BASE_DIR / "docs"
NAMES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_every_document_is_a_page_with_its_title(viewer: Client, name: str) -> None:
    page = html_of(viewer.get(f"/ops/docs/{name}"))
    title = next(line for line in (DOCS / name).read_text().splitlines() if line.startswith("# "))
    assert f"<title>{title.removeprefix('# ')} ·" in page
    assert page.count("<h1") == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_links_between_documents_lead_to_headings_that_are_there(viewer: Client, name: str) -> None:
    page = html_of(viewer.get(f"/ops/docs/{name}")).split("<article")[1]
    for address in re.findall(r'<a href="([^":]+\.md(?:#[^"]*)?|#[^"]+)"', page):
        file, _, heading = address.partition("#")
        target = Path("/ops/docs", name).parent / file if file else Path("/ops/docs", name)
        path = re.sub(r"[^/]+/\.\./", "", str(target))
        answer = viewer.get(path)
        assert answer.status_code == 200, address
        assert f'id="{heading}"' in html_of(answer) or not heading, address


def test_a_document_is_text_and_runs_nothing(viewer: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = html_of(viewer.get("/ops/docs/operations.md")).split("<article")[1]
    assert "<script" not in page
    # Placeholders of commands are text.
    assert "&lt;group&gt;" in page


@pytest.mark.parametrize(
    "name",
    ["none.md", "../manage.py", "%2e%2e/manage.py", "../docs/operations.md", "/etc/passwd", "operations", "a\0.md"],
)
def test_nothing_else_is_served(viewer: Client, name: str) -> None:
    assert viewer.get(f"/ops/docs/{name}").status_code == 404


def test_an_alert_leads_to_its_runbook(viewer: Client, alert: Alert) -> None:
    Alert.objects.update(runbook="docs/operations.md#scaling")
    for path in ("/ops/", "/ops/alerts"):
        assert 'href="/ops/docs/operations.md#scaling"' in html_of(viewer.get(path))


@pytest.mark.parametrize("path", ["", "docs/", "docs/runbooks/none.md", "https://example.com/a.md", "operations.md"])
def test_a_runbook_that_is_no_document_has_no_address(path: str) -> None:
    assert document_address(path) == ""


def test_the_index_leads_to_every_document_with_its_first_lines(viewer: Client) -> None:
    page = html_of(viewer.get("/ops/docs/"))
    for name in NAMES:
        assert f'href="/ops/docs/{name}"' in page
    assert '<a href="/ops/docs/" aria-current="page">Documents</a>' in page
    assert "<h1" in html_of(viewer.get("/ops/docs"))
    assert viewer.get("/ops")["Location"] == "/ops/"


def test_a_long_document_begins_with_its_contents(viewer: Client) -> None:
    page = html_of(viewer.get("/ops/docs/operations.md"))
    contents, article = page.split('id="contents"')[1].split("<article")
    anchors = re.findall(r'href="#([^"]+)"', contents)
    assert len(anchors) == article.count("<h2")
    assert 'aria-current="page">Documents<' in page
