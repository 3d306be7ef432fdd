"""Readers of a request's body, caller, Idempotency-Key, traceparent and numbers in its query."""

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

# The end of an error message of msgspec: the path of the invalid field.
_FIELD = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)

KEY_LENGTH = 255


class Caller(Protocol):
    """What the authentication classes put into ``request.user``."""

    @property
    def user_id(self) -> int: ...
    @property
    def may_issue_for_others(self) -> bool: ...


class APIView(views.APIView):
    """DRF's view without OPTIONS: with no metadata class DRF would list it in ``Allow`` and then answer 405."""

    http_method_names = [name for name in views.APIView.http_method_names if name != "options"]


class EmptyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that has no fields."""


def body_of(request: Request, kind: type[Body], *, normalize: Callable[[Any], Any] | None = None) -> Body:
    """Convert the body of a request to ``kind``; ``normalize`` is applied to the decoded JSON before the checks.

    Raises InvalidRequest, which names the field. Only request bodies are converted here: a msgspec error anywhere else
    is a fault of the service, not a 400.
    """
    data = request.data if normalize is None else normalize(request.data)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        field, message = _locate(str(error))
        detail = f"{field}: {message}" if field else message
        raise InvalidRequest(detail, errors=[{"field": field, "message": message}]) from error


def caller_of(request: Request) -> Caller:
    return cast(Caller, request.user)


def idempotency_key(request: Request) -> str | None:
    """Return the ``Idempotency-Key`` header, None if it is missing. Raises InvalidRequest for an invalid key."""
    # META, since ``request.headers`` converts the names of all headers first.
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return None
    if not is_idempotency_key(key):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {KEY_LENGTH} printable ASCII characters.",
            errors=[{"field": "Idempotency-Key", "message": f"must be 1 to {KEY_LENGTH} printable ASCII characters"}],
        )
    return key


def is_idempotency_key(text: str) -> bool:
    """Whether ``text`` may be an Idempotency-Key."""
    return 1 <= len(text) <= KEY_LENGTH and text.isascii() and text.isprintable()


def number_parameter(request: Request, name: str, *, default: int, largest: int) -> int:
    """Return a number from 1 to ``largest`` of the query, ``default`` if it is missing. Raises InvalidRequest."""
    raw = request.query_params.get(name, str(default))
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= largest):
        message = f"must be a number from 1 to {largest}"
        raise InvalidRequest(f"{name} {message}.", errors=[{"field": name, "message": message}])
    return int(raw)


def traceparent(request: Request) -> str:
    """Return the request's trace context; empty without a valid one: then a new trace begins."""
    return read_traceparent(request.META.get("HTTP_TRACEPARENT", ""))


def _locate(message: str) -> tuple[str, str]:
    """Split an error message of msgspec into the path of the invalid field and the complaint."""
    field = ""
    if found := _FIELD.search(message):
        field, message = found[1], message[: found.start()]
    if named := _NAMED.fullmatch(message):
        field = f"{field}.{named[1]}" if field else named[1]
        message = "unknown field" if "unknown" in message[:25] else "missing"
    return field, message
