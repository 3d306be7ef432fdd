"""Admin pages of dead letters: what failed and why, and the actions that close or release letters."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import msgspec
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import SafeString

from common.admin_base import column, exact_utc, search_link, utc
from common.processes.lifecycle import first_line
from common.processes.outages import is_transient

from .consuming.dead_letters import FOREIGN, RELAY
from .message_admin import MessageAdmin, block, headers_text, key_text, payload_start, readable
from .models import MOST_REPLAYS, DeadLetter
from .operating.audit import LONGEST_REASON
from .operating.dead_letter_counts import OpenDeadLetters, open_dead_letters
from .redriving.discarding import DISCARD_PERMISSION, MOST_AT_ONCE, discard_letters, release_letters
from .redriving.redrives import REDRIVE_PERMISSION
from .routes import topics_of

# Ids that the address of a page can carry.
_MOST_IN_ADDRESS = 200

_STATE_COLOURS = {
    "open": "danger", "quarantined": "warning", "replayed": "success", "discarded": "default", "closed": "default",
}  # fmt: skip


def _counts(request: HttpRequest) -> OpenDeadLetters:
    """Return the counts of open letters, read once per request."""
    if not hasattr(request, "open_dead_letters"):
        vars(request)["open_dead_letters"] = open_dead_letters()
    return cast(OpenDeadLetters, vars(request)["open_dead_letters"])


class _ColumnFilter(admin.SimpleListFilter):
    """Filters by the value of an indexed column."""

    field = ""

    def values(self, request: HttpRequest) -> Collection[str]:
        """Return the values that are offered; any other may stand in the address."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values(request)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if not value:
            return queryset
        # PostgreSQL refuses NUL in a text.
        return queryset.none() if "\0" in value else queryset.filter(**{self.field: value})


class GroupFilter(_ColumnFilter):
    title, parameter_name, field = "consumer group", "group", "consumer_group"

    def values(self, request: HttpRequest) -> Collection[str]:
        return [*settings.KAFKA_GROUPS, RELAY, FOREIGN]


class TopicFilter(_ColumnFilter):
    title, parameter_name, field = "topic", "topic", "topic"

    def values(self, request: HttpRequest) -> Collection[str]:
        return sorted(topics_of(settings.KAFKA_ROUTES))


class ErrorFilter(_ColumnFilter):
    title, parameter_name, field = "error class", "error", "error_class"

    def values(self, request: HttpRequest) -> Collection[str]:
        return sorted({kind.error_class for kind in _counts(request).counts})


class StateFilter(admin.SimpleListFilter):
    """Each state has its partial index."""

    title, parameter_name = "state", "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("open", "open, also in quarantine"), ("quarantined", "in quarantine"), ("replayed", "replayed"),
            ("discarded", "discarded"),
        ]  # fmt: skip

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.filter(closed_at=None)
            case "quarantined":
                return queryset.filter(closed_at=None, replays__gte=MOST_REPLAYS)
            case "replayed" | "discarded" as outcome:
                return queryset.filter(closed_at__isnull=False, outcome=outcome)
        return queryset


@admin.display(description="error message")
def error_text(row: DeadLetter) -> SafeString:
    return block(row.error_message)


@admin.display(description="traceback")
def traceback_text(row: DeadLetter) -> SafeString:
    return block(row.traceback or "none: the error was not raised in a handler, or an earlier version wrote the letter")


@admin.display(description="payload as JSON")
def json_text(row: DeadLetter) -> SafeString:
    """Show the payload with indents. Its numbers are not parsed, so ids of 64 bits stay exact."""
    if row.payload is None:
        return block("null")
    try:
        return block(readable(msgspec.json.format(bytes(row.payload), indent=2)))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return block(f"not JSON: {error}")


@admin.display(description="payload")
def raw_text(row: DeadLetter) -> SafeString:
    return block(readable(row.payload))


@admin.display(description="event")
def event_link(row: DeadLetter) -> SafeString | None:
    return None if row.event_id is None else search_link(DeadLetter, str(row.event_id))


@admin.display(description="actions")
def actions_link(row: DeadLetter) -> SafeString:
    return search_link(DeadLetter, str(row.pk))


Action = Callable[..., int]


class DeadLetterAdmin(MessageAdmin):
    """Letters cannot be edited: they are evidence. The actions ask for a reason and are audited."""

    list_before_template = "kafka_bridge/dead_letter_counts.html"
    list_filter = (GroupFilter, TopicFilter, ErrorFilter, StateFilter)
    list_display = (
        "id", column("state", lambda row: row.state, _STATE_COLOURS), "consumer_group", "topic", "partition", "offset",
        "event_id", "error_class", "replays", payload_start, utc("created_at"), utc("last_seen_at"),
    )  # fmt: skip
    not_in_the_list = ("payload", "headers", "traceback", "error_message", "last_error")
    shown = (
        "id", column("state", lambda row: row.state), "consumer_group", "topic", "partition", "offset",
        "message_timestamp", "event_type", "event_id", event_link, exact_utc("created_at"), exact_utc("last_seen_at"),
        exact_utc("closed_at"), "replays", "last_error", actions_link, "error_class", error_text, traceback_text,
        key_text, headers_text, json_text, raw_text,
    )  # fmt: skip
    actions = ("redrive", "discard", "release")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(DISCARD_PERMISSION)

    def has_redrive_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(REDRIVE_PERMISSION)

    @admin.action(description="Redrive: replay, after a preview", permissions=["redrive"])
    def redrive(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse:
        letter_ids = list(queryset.order_by("pk").values_list("pk", flat=True)[: _MOST_IN_ADDRESS + 1])
        if len(letter_ids) > _MOST_IN_ADDRESS:
            messages.error(request, f"At most {_MOST_IN_ADDRESS} dead letters can be selected: use a filter instead.")
            return HttpResponseRedirect(reverse("ops:redrives"), status=303)
        ids = ",".join(map(str, letter_ids))
        return HttpResponseRedirect(f"{reverse('ops:redrives')}?ids={ids}", status=303)

    @admin.action(description="Discard: close without the effect", permissions=["discard"])
    def discard(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse:
        return self._for_a_reason(request, queryset, "discard", "discarded", discard_letters)

    @admin.action(description="Release from quarantine", permissions=["redrive"])
    def release(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse:
        return self._for_a_reason(request, queryset, "release", "released from quarantine", release_letters)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        # Without it, Django answers as if no action had been chosen.
        if request.POST.get("action") in self.actions and request.POST["action"] not in self.get_actions(request):
            raise PermissionDenied
        return super().changelist_view(request, {**(extra_context or {}), "letter_counts": _counts(request)})

    def _for_a_reason(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter], action: str, done: str, act: Action
    ) -> HttpResponse:
        """Ask for the reason, then act on the selected letters."""
        letter_ids = list(queryset.order_by("pk").values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        back = HttpResponseRedirect(reverse("admin:kafka_bridge_deadletter_changelist"), status=303)
        if len(letter_ids) > MOST_AT_ONCE:
            messages.error(request, f"At most {MOST_AT_ONCE} dead letters at once: narrow the list.")
            return back
        reason = request.POST.get("reason", "").strip()
        if not reason or len(reason) > LONGEST_REASON or "\0" in reason:
            context = {
                **self.admin_site.each_context(request),
                "title": f"{action.capitalize()} dead letters",
                "opts": self.opts,
                "action": action,
                "letter_ids": letter_ids,
                "checkbox_name": ACTION_CHECKBOX_NAME,
                "longest_reason": LONGEST_REASON,
                "is_wrong": "reason" in request.POST,
            }
            return TemplateResponse(request, "kafka_bridge/dead_letter_reason.html", context)
        try:
            number = act(letter_ids, actor=request.user.get_username(), reason=reason)
        except DatabaseError as error:
            if not is_transient(error):
                raise
            messages.error(request, f"Nothing was {done}, try again: {first_line(error)}")
            return back
        messages.success(request, f"{number} of {len(letter_ids)} dead letters {done}; the others were not open.")
        return back
