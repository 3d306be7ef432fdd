"""What views read from a request: the caller, the Idempotency-Key, the traceparent, a body without fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from rest_framework import views
from rest_framework.request import Request

from common.api.errors import InvalidRequest
from common.trace_context import read_traceparent

Body = TypeVar("Body")


# Where a message of msgspec says what it complains about.
_FIELD = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)


_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)


KEY_LENGTH = 255


class Caller(Protocol):
    """Who asks, as the authentication classes tell it in ``request.user``."""

    @property
    def user_id(self) -> int: ...
    @property
    def may_issue_for_others(self) -> bool: ...


class APIView(views.APIView):
    """DRF's view without OPTIONS, which it would name in every ``Allow`` and then refuse."""

    http_method_names = [name for name in views.APIView.http_method_names if name != "options"]


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that needs none."""


def body_of(request: Request, kind: type[Body], *, normalize: Callable[[Any], Any] | None = None) -> Body:
    """The body of a call, converted to ``kind``; ``normalize`` gets the decoded JSON before it is checked.

    Raises InvalidRequest, which names the field. Only what a client sent is converted here: what cannot be decoded
    elsewhere is our fault, and no 400.
    """
    data = request.data if normalize is None else normalize(request.data)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        field, message = _locate(str(error))
        errors = [{"field": field, "message": message}]
        raise InvalidRequest(f"{field}: {message}" if field else message, errors=errors) from error


def caller_of(request: Request) -> Caller:
    return cast(Caller, request.user)


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` of a call, None without one. Raises InvalidRequest for one that cannot be a key."""
    # META, since ``headers`` would translate the names of them all.
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not (1 <= len(key) <= KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {KEY_LENGTH} printable ASCII characters.",
            errors=[{"field": "Idempotency-Key", "message": f"must be 1 to {KEY_LENGTH} printable ASCII characters"}],
        )
    return key


def traceparent(request: Request) -> str:
    """The trace context of a call; empty where it brings none that is valid, and a new trace begins."""
    return read_traceparent(request.META.get("HTTP_TRACEPARENT", ""))


def _locate(message: str) -> tuple[str, str]:
    """Splits a message of msgspec into the path of the field it complains about and the complaint."""
    field = ""
    if place := _FIELD.search(message):
        field, message = place[1], message[: place.start()]
    if named := _NAMED.fullmatch(message):
        field = f"{field}.{named[1]}" if field else named[1]
        message = "unknown field" if "unknown" in message[:25] else "missing"
    return field, message
