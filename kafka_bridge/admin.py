"""Admin pages of the outbox and alerts; those of dead letters are in ``dead_letter_admin``."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest

from common.admin_base import ReadOnlyAdmin, code, exact_utc, utc, uuid_in

from .dead_letter_admin import DeadLetterAdmin
from .message_admin import MessageAdmin, headers_text, key_text, payload_start, payload_text
from .models import Alert, DeadLetter, OutboxMessage
from .outbox.published import is_published_sql, unpublished_sql

# How many unpublished rows of each kind the filter lists, the newest.
_MOST_WAITING = 50

admin.site.register(DeadLetter, DeadLetterAdmin)


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
