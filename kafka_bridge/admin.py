"""Admin pages of the outbox, dead letters and alerts."""

from __future__ import annotations

import codecs
import unicodedata
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import BinaryField, F, Func, QuerySet, Value
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from common.admin_base import ReadOnlyAdmin, code, exact_utc, number_in, utc, uuid_in
from common.postgres.clock import isoformat_z

from .cloudevents import cloud_event_headers, decode_headers
from .consuming.dead_letters import FOREIGN, RELAY
from .models import Alert, DeadLetter, OutboxMessage
from .outbox.published import is_published_sql, unpublished_sql

_SHOWN_IN_LISTS = 80
# How many unpublished rows of each kind the filter lists, the newest.
_MOST_WAITING = 50


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
    if any(unicodedata.category(letter) == "Cc" and letter not in "\t\r\n" for letter in text):
        return f"hex {data.hex()}"
    return text


def _block(text: str) -> SafeString:
    return format_html('<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)


@admin.display(description="key")
def key_text(row: OutboxMessage | DeadLetter) -> str:
    return readable(row.key)


@admin.display(description="payload")
def payload_text(row: OutboxMessage | DeadLetter) -> SafeString:
    return _block(readable(row.payload))


@admin.display(description="payload")
def payload_start(row: Any) -> SafeString:
    if row.payload_start is None or len(row.payload_start) <= _SHOWN_IN_LISTS:
        text = readable(row.payload_start)
    else:
        text = f"{readable(row.payload_start[:_SHOWN_IN_LISTS], cut=True)}…"
    return format_html('<span style="overflow-wrap: anywhere">{}</span>', text)


@admin.display(description="error message")
def error_text(row: DeadLetter) -> SafeString:
    return _block(row.error_message)


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
    return _block("\n".join(f"{name}: {value}" for name, value in pairs))


class MessageAdmin(ReadOnlyAdmin):
    """Shows untrusted bytes as text, never as markup; lists read only the beginning of a payload."""

    search_help_text = "event id or request id (UUID), or id"
    not_in_the_list = ("payload", "headers")

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


class WaitingFilter(admin.SimpleListFilter):
    """Filters by the relay's positions; there is no index of published rows."""

    title = "publishing"
    parameter_name = "published"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", f"not published, the newest {_MOST_WAITING}")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() != "no":
            return queryset
        unpublished = unpublished_sql(str(_MOST_WAITING), newest=True)
        return queryset.filter(id__in=RawSQL(f"SELECT id FROM ({unpublished}) AS unpublished", []))


class GroupFilter(admin.SimpleListFilter):
    """Filters by the first column of the unique index of dead letters."""

    title = "consumer group"
    parameter_name = "group"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in (*settings.KAFKA_GROUPS, RELAY, FOREIGN)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(consumer_group=self.value()) if self.value() else queryset


class OpenFilter(admin.SimpleListFilter):
    """Open alerts have a partial index; they are so few that skipping them to list the ended ones is cheap."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open"), ("ended", "ended")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("open", "ended"):
            return queryset
        return queryset.filter(ended_at__isnull=self.value() == "open")


@admin.display(description="published", boolean=True)
def is_published(row: Any) -> bool:
    return bool(row.is_published)


@admin.register(OutboxMessage)
class OutboxMessageAdmin(MessageAdmin):
    list_display = (
        "id", "event_type", "event_id", "topic", key_text, payload_start, utc("created_at"), is_published,
    )  # fmt: skip
    list_filter = (WaitingFilter,)
    shown = (
        "id", "event_type", "event_id", "topic", key_text, "shard", exact_utc("created_at"),
        is_published,
        headers_text, payload_text,
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_published=RawSQL(is_published_sql(), []))
        return rows


@admin.register(DeadLetter)
class DeadLetterAdmin(MessageAdmin):
    list_display = (
        "id", "consumer_group", "topic", "partition", "offset", "event_id", "error_class", payload_start,
        utc("created_at"),
    )  # fmt: skip
    list_filter = (GroupFilter,)
    shown = (
        "id", "consumer_group", "topic", "partition", "offset", "message_timestamp", "event_type", "event_id",
        "error_class", error_text, exact_utc("created_at"), key_text, headers_text, payload_text,
    )  # fmt: skip


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    search_help_text = "alert id (UUID), which is the Idempotency-Key of its notification"
    list_display = (
        code("severity", {"warning": "warning", "critical": "danger"}), "rule", "summary", utc("started_at"),
        utc("ended_at"),
    )  # fmt: skip
    list_filter = (OpenFilter,)
    shown = (
        "id", "rule", code("severity"), "summary", "runbook", exact_utc("started_at"), exact_utc("ended_at"),
    )  # fmt: skip

    def find(self, rows: QuerySet[Any], text: str) -> QuerySet[Any] | None:
        alert_id = uuid_in(text)
        return None if alert_id is None else rows.filter(pk=alert_id)
