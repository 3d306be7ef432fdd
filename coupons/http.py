"""What the views of every app share: who asks, the headers that go along, bodies without fields, and pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from django.db.models import QuerySet
from rest_framework import views
from rest_framework.exceptions import NotFound as NotAPage
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from kafka_bridge.contracts import read_traceparent

from .errors import InvalidRequest

Body = TypeVar("Body")

# Where a message of msgspec says what it complains about.
_FIELD = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)

KEY_LENGTH = 255
MOST_ROWS = 200
USUAL_ROWS = 50


class Caller(Protocol):
    """Who asks, as the authentication classes tell it in ``request.user``."""

    @property
    def user_id(self) -> int: ...
    @property
    def may_issue_for_others(self) -> bool: ...


class APIView(views.APIView):
    """DRF's view without OPTIONS, which it would name in every ``Allow`` and then refuse."""

    http_method_names = [name for name in views.APIView.http_method_names if name != "options"]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that needs none."""


class Cursor(CursorPagination):
    """Pages by id, newest first; ``limit`` 1 to 200."""

    ordering = "-id"
    page_size = USUAL_ROWS
    page_size_query_param = "limit"
    max_page_size = MOST_ROWS
    invalid_cursor_message = "The cursor is not one that this list gave out."

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
        except NotAPage as error:
            raise InvalidRequest(self.invalid_cursor_message) from error
        # The position goes into the query as it is, and any client can make a cursor up.
        if cursor is not None and cursor.position is not None and not _is_id(str(cursor.position)):
            raise InvalidRequest(self.invalid_cursor_message)
        return cursor

    def get_page_size(self, request: Request) -> int:
        raw = request.query_params.get("limit", str(self.page_size))
        if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= MOST_ROWS):
            raise InvalidRequest(
                f"limit must be a number from 1 to {MOST_ROWS}.",
                errors=[{"field": "limit", "message": f"must be a number from 1 to {MOST_ROWS}"}],
            )
        return int(raw)


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


def _is_id(text: str) -> bool:
    # Length first: int() refuses thousands of digits with an error of its own, zeros in front included.
    return text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63


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


def page(request: Request, view: APIView, rows: QuerySet[Any], body: Callable[[Any], Any]) -> Response:
    """A page of ``rows``, each told by ``body``. Raises InvalidRequest for a limit or cursor that is none."""
    cursor = Cursor()
    found: list[Any] = cursor.paginate_queryset(rows, request, view=view) or []
    return Response({"results": [body(row) for row in found], "next": cursor.get_next_link()})


def _locate(message: str) -> tuple[str, str]:
    """Splits a message of msgspec into the path of the field it complains about and the complaint."""
    field = ""
    if place := _FIELD.search(message):
        field, message = place[1], message[: place.start()]
    if named := _NAMED.fullmatch(message):
        field = f"{field}.{named[1]}" if field else named[1]
        message = "unknown field" if "unknown" in message[:25] else "missing"
    return field, message
