"""The page of the audit trail."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from kafka_bridge.models import OperatorAction
from kafka_bridge.operating import audit_search
from kafka_bridge.operating.audit import record_action
from tests.admin.pages import html_of

PATH = "/ops/audit"


def record(action: str = "coupon.pause", actor: str = "olga", subject: str = "coupon SUMMER", **values: Any) -> None:
    with transaction.atomic():
        record_action(actor=actor, action=action, subject=subject, **values)


def listed(client: Client, query: str = "") -> list[str]:
    """The reasons on the page, in its order."""
    return [action.reason for action, _ in client.get(f"{PATH}{query}").context["actions"]]


def walked(client: Client, query: str = "") -> list[str]:
    """The reasons on the page and on all older ones."""
    reasons: list[str] = []
    for _ in range(100):
        context = client.get(f"{PATH}{query}").context
        reasons += [action.reason for action, _ in context["actions"]]
        query = context["older"]
        if not query:
            return reasons
    raise AssertionError("the pages do not end")


def test_an_action_is_shown_as_text_with_what_it_changed(viewer: Client) -> None:
    before = {"total_quantity": 9007199254740993, "closes_at": None, "name": "", "old": "x"}
    after = {"total_quantity": 2**63 - 1, "closes_at": "2036-01-01T00:00:00Z", "name": "<b>여름</b>"}
    record(reason="<i>wrong</i> terms", before=before, after=after)
    response = viewer.get(PATH)
    page = html_of(response)
    for words in ("olga", "coupon.pause", "coupon SUMMER", "&lt;i&gt;wrong&lt;/i&gt; terms"):
        assert words in page
    ((_, changes),) = response.context["actions"]
    assert [tuple(change) for change in changes] == [
        ("closes_at", "null", "2036-01-01T00:00:00Z"),
        ("name", '""', "<b>여름</b>"),
        ("old", "x", None),
        ("total_quantity", "9007199254740993", "9223372036854775807"),
    ]
    assert "9007199254740993 → 9223372036854775807" in page
    assert "&lt;b&gt;여름&lt;/b&gt;" in page


def test_of_what_is_new_only_the_values_that_it_has_are_shown(viewer: Client) -> None:
    record(after={"name": "SUMMER", "discount_cap": None})
    response = viewer.get(PATH)
    ((_, changes),) = response.context["actions"]
    assert [tuple(change) for change in changes] == [("name", None, "SUMMER")]
    assert "nothing" not in html_of(response)


def test_actions_come_newest_first_a_page_at_a_time(viewer: Client) -> None:
    for number in range(audit_search.PAGE_ROWS * 2 + 7):
        record(reason=str(number))
    newest_first = [str(number) for number in reversed(range(audit_search.PAGE_ROWS * 2 + 7))]
    assert listed(viewer) == newest_first[: audit_search.PAGE_ROWS]
    assert walked(viewer) == newest_first
    # What is recorded meanwhile moves no page.
    older = viewer.get(PATH).context["older"]
    record(reason="meanwhile")
    assert listed(viewer, older) == newest_first[audit_search.PAGE_ROWS : 2 * audit_search.PAGE_ROWS]


@pytest.mark.parametrize(
    ("query", "reasons"),
    [
        ("", ["4", "3", "2", "1"]),
        ("?actor=olga", ["4", "3", "1"]),
        ("?action=coupon.close", ["3", "2"]),
        ("?subject=coupon+WINTER", ["4"]),
        ("?actor=olga&action=coupon.close", ["3"]),
        ("?actor=olga&action=coupon.pause&subject=coupon+SUMMER", ["1"]),
        ("?actor=victor&subject=coupon+WINTER", []),
        ("?actor=OLGA", []),
        ("?actor=%00", []),
        ("?actor=%25", []),
        ("?below=0", ["4", "3", "2", "1"]),
        ("?below=x", ["4", "3", "2", "1"]),
        ("?below=99999999999999999999", ["4", "3", "2", "1"]),
    ],
)
def test_the_trail_is_searched_by_actor_action_and_subject(viewer: Client, query: str, reasons: list[str]) -> None:
    record(reason="1")
    record("coupon.close", actor="victor", reason="2")
    record("coupon.close", reason="3")
    record(subject="coupon WINTER", reason="4")
    assert listed(viewer, query) == reasons


def test_a_search_by_two_values_goes_on_where_it_left_off(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_search, "MOST_READ", 10)
    monkeypatch.setattr(audit_search, "PAGE_ROWS", 3)
    found = {0, 1, 2, 3, 4, 40, 41, 55}
    for number in range(60):
        record(actor="victor" if number in found else "olga", reason=str(number))
    query = "?actor=victor&subject=coupon+SUMMER"
    first = viewer.get(f"{PATH}{query}").context
    assert (first["is_partial"], bool(first["older"])) == (True, True)
    assert walked(viewer, query) == [str(number) for number in sorted(found, reverse=True)]


def test_the_actions_that_occur_are_offered(viewer: Client) -> None:
    for action in ("hold.release", "coupon.pause", "hold.release", "alert.silence"):
        record(action)
    assert viewer.get(PATH).context["known_actions"] == ["alert.silence", "coupon.pause", "hold.release"]


def test_a_trail_without_rows_says_so(viewer: Client) -> None:
    assert "No action was recorded." in html_of(viewer.get(PATH))
    assert "with these values" in html_of(viewer.get(f"{PATH}?actor=olga"))
    assert not OperatorAction.objects.exists()
