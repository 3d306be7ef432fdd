"""Every address of the project, from its resolver, with sample arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from django.contrib.admin import ModelAdmin
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.regex_helper import normalize

# By converter. A route with another one makes the walk fail until it has a sample here.
SAMPLES = {
    "int": "1",
    "id64": "1",
    "str": "1",
    "slug": "1",
    "path": "1",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "anyuuid": "00000000-0000-0000-0000-000000000001",
}
_ARGUMENT = re.compile(r"<(?:(\w+):)?\w+>")
# Django's helper knows no alternatives: the first one stands for all.
_ALTERNATIVES = re.compile(r"\(\?:([^()|]*)\|[^()]*\)")


class Address(NamedTuple):
    """A path that leads to a view; ``model_admin``: of a page of the admin about one model, None for others."""

    path: str
    model_admin: ModelAdmin[Any] | None

    def __str__(self) -> str:
        return self.path


def every_address() -> list[Address]:
    """Return one address for each route; pages about a row of the admin lead to a row that is there."""
    return sorted(set(_walk(get_resolver().url_patterns, "/")), key=str)


def _walk(patterns: list[URLPattern | URLResolver], begin: str) -> Iterator[Address]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, begin + _sample(str(pattern.pattern), None))
        else:
            model_admin = getattr(pattern.callback, "model_admin", None)
            yield Address(begin + _sample(str(pattern.pattern), model_admin), model_admin)


def _sample(route: str, model_admin: ModelAdmin[Any] | None) -> str:
    if "(?" in route or route.startswith("^") or route.endswith("$"):
        ((path, names), *_others) = normalize(_ALTERNATIVES.sub(r"\1", route))
        return str(path % dict.fromkeys(names, "coupons"))
    row = None if model_admin is None else model_admin.model._default_manager.first()
    samples = SAMPLES if row is None else SAMPLES | {"path": str(row.pk)}
    return _ARGUMENT.sub(lambda found: samples[found[1] or "str"], route)
