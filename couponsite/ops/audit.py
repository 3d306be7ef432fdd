"""The audit trail: what operators did, when and why, and what it changed."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from common.admin_base import number_in
from kafka_bridge.models import OperatorAction
from kafka_bridge.operating.audit_search import MOST_READ, find_actions, known_actions

from .access import staff_page
from .layout import render_page

_FILTERS = ("subject", "actor", "action")
_LONGEST = 300


class Change(NamedTuple):
    """A value that an action changed; ``before`` or ``after`` None: there was none, or there is none any more."""

    name: str
    before: str | None
    after: str | None


@require_safe
@staff_page("kafka_bridge.view_operatoraction")
def audit(request: HttpRequest) -> HttpResponse:
    """List the actions, newest first, by ``subject``, ``actor`` and ``action``; ``below`` continues a list."""
    searched = {name: request.GET.get(name, "").strip()[:_LONGEST] for name in _FILTERS}
    below = number_in(request.GET.get("below", ""))
    page = find_actions(**searched, below=below)
    given = {name: value for name, value in searched.items() if value}
    context = {
        "actions": [(action, changes(action)) for action in page.actions],
        "searched": searched,
        "is_searched": bool(given),
        "is_continued": below is not None,
        "is_partial": page.is_partial,
        "most_read": MOST_READ,
        "newest": f"?{urlencode(given)}",
        "older": "" if page.older is None else f"?{urlencode({**given, 'below': page.older})}",
        "known_actions": known_actions(),
    }
    return render_page(request, "ops/audit.html", context)


def changes(action: OperatorAction) -> list[Change]:
    """Return what an action changed, in the order of the names: PostgreSQL keeps none of its own.

    A value that something new does not have (null) is no change.
    """
    before, after = _values(action.before), _values(action.after)
    names = sorted({*before, *after})
    return [
        Change(name, _text(before, name), _text(after, name))
        for name in names
        if name in before or after[name] is not None
    ]


def _values(recorded: Any) -> dict[str, Any]:
    if recorded is None:
        return {}
    return recorded if isinstance(recorded, dict) else {"value": recorded}


def _text(values: dict[str, Any], name: str) -> str | None:
    if name not in values:
        return None
    value = values[name]
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
