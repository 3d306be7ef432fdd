"""Cursor pagination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from django.db.models import QuerySet
from msgspec import Meta
from rest_framework.exceptions import NotFound as InvalidCursor
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from common.api.errors import InvalidRequest
from common.api.requests import APIView, number_parameter

from ..bigint import MAX_BIGINT

Body = TypeVar("Body")

MOST_ROWS = 200
USUAL_ROWS = 50


class CursorPage(CursorPagination):
    """Pages by id, newest first; ``limit`` 1 to 200."""

    ordering = "-id"
    page_size = USUAL_ROWS
    page_size_query_param = "limit"
    max_page_size = MOST_ROWS
    invalid_cursor_message = "The cursor was not issued by this list."

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
        except InvalidCursor as error:
            raise InvalidRequest(self.invalid_cursor_message) from error
        # DRF puts the position into the query unchecked, and a client can forge a cursor.
        if cursor is not None and cursor.position is not None and not _is_id(str(cursor.position)):
            raise InvalidRequest(self.invalid_cursor_message)
        return cursor

    def get_page_size(self, request: Request) -> int:
        return number_parameter(request, "limit", default=USUAL_ROWS, largest=MOST_ROWS)


def _is_id(text: str) -> bool:
    # Length first: int() raises ValueError for more than 4300 digits, leading zeros included.
    return text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_BIGINT


class Page(msgspec.Struct, Generic[Body], frozen=True):
    results: list[Body]
    next: Annotated[str, Meta(description="The URL of the next page.", extra_json_schema={"format": "uri"})] | None


def paginated(
    request: Request, view: APIView, rows: QuerySet[Any], body: Callable[[Any], Body], page: type[Page[Body]]
) -> Response:
    """Return one ``page`` of ``rows``, each converted by ``body``.

    Raises InvalidRequest for an invalid limit or cursor.
    """
    cursor = CursorPage()
    found: list[Any] = cursor.paginate_queryset(rows, request, view=view) or []
    return Response(page([body(row) for row in found], cursor.get_next_link()))
