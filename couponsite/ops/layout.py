"""What all pages of operators share: the navigation, the name of the environment and the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

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
    ("Processes", "ops:processes"),
    ("Who blocks whom", "ops:blocks"),
    ("Documents", "ops:documents"),
)


def render_page(
    request: HttpRequest, template: str, context: Mapping[str, Any] | None = None, *, status: int = 200
) -> HttpResponse:
    """Render a template that extends ``ops/base.html``."""
    shared = {"navigation": _navigation(request), "environment_name": settings.ENVIRONMENT_NAME}
    return render(request, template, {**shared, **(context or {})}, status=status)


def _navigation(request: HttpRequest) -> list[NavigationEntry]:
    entries = [(label, reverse(name)) for label, name in _ENTRIES]
    seen = [(label, address) for label, address in entries if may_open(request.user, address)]
    # The longest address that the path begins with: the dashboard's is the beginning of all.
    current = max((address for _, address in seen if request.path.startswith(address)), key=len, default="")
    return [NavigationEntry(label, address, address == current) for label, address in seen]
