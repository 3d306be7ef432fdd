"""What all pages of operators share: the navigation, the name of the environment and the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from kafka_bridge.operating.group_pauses import pauses

from .access import may_open


class NavigationEntry(NamedTuple):
    """A link of the navigation."""

    label: str
    address: str
    is_current: bool


# Label and name of the URL. Users see only links that they may open. Pages below a page belong to its entry.
_ENTRIES = (
    ("Dashboard", "ops:dashboard"),
    ("Alerts", "ops:alerts"),
    ("Requests", "ops:requests"),
    ("Groups", "ops:groups"),
    ("Holds", "ops:holds"),
    ("Redrives", "ops:redrives"),
    ("Processes", "ops:processes"),
    ("Who blocks whom", "ops:blocks"),
    ("Audit", "ops:audit"),
    ("Documents", "ops:documents"),
)


_MOST_IN_BANNER = 5


def render_page(
    request: HttpRequest, template: str, context: Mapping[str, Any] | None = None, *, status: int = 200
) -> HttpResponse:
    """Render a template that extends ``ops/base.html``; ``paused`` is what the banner of every page names."""
    paused = pauses()
    shared = {
        "navigation": _navigation(request),
        "environment_name": settings.ENVIRONMENT_NAME,
        "paused": paused[:_MOST_IN_BANNER],
        "paused_more": max(0, len(paused) - _MOST_IN_BANNER),
        "may_see_groups": request.user.has_perm("kafka_bridge.view_grouppause"),
    }
    return render(request, template, {**shared, **(context or {})}, status=status)


def report_errors(request: HttpRequest, form: forms.Form) -> None:
    """Add a message for each field of ``form`` that is not valid: for forms that the page does not show again."""
    for name, errors in form.errors.items():
        messages.error(request, f"{name.capitalize()}: {' '.join(str(error) for error in errors)}")


def _navigation(request: HttpRequest) -> list[NavigationEntry]:
    entries = [(label, reverse(name)) for label, name in _ENTRIES]
    seen = [(label, address) for label, address in entries if may_open(request.user, address)]
    # The longest address that the path begins with: the dashboard's is the beginning of all.
    current = max((address for _, address in seen if request.path.startswith(address)), key=len, default="")
    return [NavigationEntry(label, address, address == current) for label, address in seen]
