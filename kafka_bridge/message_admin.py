"""What the admin pages of stored messages share: untrusted bytes shown as text."""

from __future__ import annotations

import codecs
import re
from typing import Any

from django.contrib import admin
from django.db.models import BinaryField, F, Func, QuerySet, Value
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from common.admin_base import ReadOnlyAdmin, number_in, uuid_in
from common.postgres.clock import isoformat_z

from .cloudevents import cloud_event_headers, decode_headers
from .models import DeadLetter, OutboxMessage

_SHOWN_IN_LISTS = 80
# Of Unicode's category Cc all but tab and line breaks. An expression: a payload has up to a million characters.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def readable(raw: bytes | memoryview | None, *, cut: bool = False) -> str:
    """Return ``raw`` as text, as hex if it is not printable UTF-8, ``null`` for None.

    With ``cut`` the last character may be incomplete.
    """
    if raw is None:
        return "null"
    data = bytes(raw)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return f"hex {data.hex()}"
    if _CONTROL_CHARACTER.search(text):
        return f"hex {data.hex()}"
    return text


def block(text: str) -> SafeString:
    """Return ``text`` as it is, with its line breaks."""
    return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)


@admin.display(description="key")
def key_text(row: OutboxMessage | DeadLetter) -> str:
    return readable(row.key)


@admin.display(description="payload")
def payload_text(row: OutboxMessage | DeadLetter) -> SafeString:
    return block(readable(row.payload))


@admin.display(description="payload")
def payload_start(row: Any) -> SafeString:
    if row.payload_start is None or len(row.payload_start) <= _SHOWN_IN_LISTS:
        text = readable(row.payload_start)
    else:
        text = f"{readable(row.payload_start[:_SHOWN_IN_LISTS], cut=True)}…"
    return format_html('<span style="overflow-wrap: anywhere">{}</span>', text)


@admin.display(description="headers")
def headers_text(row: OutboxMessage | DeadLetter) -> SafeString:
    if row.headers is not None:
        pairs = [(name, readable(value)) for name, value in decode_headers(bytes(row.headers))]
    else:
        # An event's headers are not stored: the relay builds them from the row, as here.
        assert isinstance(row, OutboxMessage)
        pairs = [
            (name, value.decode() if isinstance(value, bytes) else str(value))
            for name, value in cloud_event_headers(
                event_id=str(row.event_id),
                event_type=row.event_type,
                time=isoformat_z(row.created_at),
                traceparent=row.traceparent,
            )
        ]
    return block("\n".join(f"{name}: {value}" for name, value in pairs))


class MessageAdmin(ReadOnlyAdmin):
    """Shows untrusted bytes as text, never as markup; lists read only the beginning of a payload."""

    search_help_text = "event id or request id (UUID), or id"
    not_in_the_list: tuple[str, ...] = ("payload", "headers")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        # One byte more than shown, to know whether the payload is longer.
        arguments = F("payload"), Value(1), Value(_SHOWN_IN_LISTS + 1)
        beginning = Func(*arguments, function="substring", output_field=BinaryField())
        rows: QuerySet[Any] = super().get_queryset(request).annotate(payload_start=beginning)
        return rows

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        if (row_id := number_in(text)) is not None:
            return rows.filter(pk=row_id)
        event_id = uuid_in(text)
        return None if event_id is None else rows.filter(event_id=event_id)
