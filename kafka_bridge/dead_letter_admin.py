"""Admin pages of dead letters: what failed and why, and the actions that close or release letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, cast

import msgspec
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import SEARCH_VAR
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import Error as DatabaseError
from django.db.models import QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from common.admin_base import column, exact_utc, number_in, search_link
from common.processes.lifecycle import first_line
from common.processes.outages import is_transient

from .consuming.dead_letters import FOREIGN, RELAY
from .message_admin import MessageAdmin, block, headers_text, key_text, payload_start, readable
from .models import MOST_REPLAYS, DeadLetter
from .operating.audit import LONGEST_REASON
from .operating.dead_letter_counts import OpenDeadLetters, open_dead_letters
from .redriving.discarding import DISCARD_PERMISSION, MOST_AT_ONCE, discard_letters, release_letters
from .redriving.redrives import REDRIVE_PERMISSION
from .registry import former_topic_names
from .routes import topics_of

_ERROR_SHOWN_IN_LIST = 160
_LINES = '<div style="min-width: {}; overflow-wrap: anywhere">{}<br><small>{}</small></div>'
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
        return sorted(topics_of(settings.KAFKA_ROUTES) | former_topic_names())


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
def actions_link(row: DeadLetter) -> SafeString | str:
    if row.closed_at is not None:
        return "none: it is closed"
    address = reverse("admin:kafka_bridge_deadletter_changelist", query={SEARCH_VAR: row.pk})
    text = "Select it in the list to redrive, discard or release it"
    return format_html('<a class="underline" href="{}">{}</a>', address, text)


@admin.display(description="group and message")
def position(row: DeadLetter) -> SafeString:
    """Show the consumer group, where the message stood, and its event's id."""
    place = f"{row.topic}[{row.partition}]@{row.offset}"
    return format_html(_LINES, "10rem", row.consumer_group, format_html("{}<br>{}", place, row.event_id or "-"))


@admin.display(description="first and last seen")
def seen(row: DeadLetter) -> SafeString:
    """Show when the message failed first, and when it failed again."""
    times = [f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-" for moment in (row.created_at, row.last_seen_at)]
    return format_html('<span style="white-space: nowrap">{}<br>{}</span>', *times)


@admin.display(description="error and payload")
def error_start(row: Any) -> SafeString:
    """Show the error with the beginning of its message, and the beginning of the payload."""
    error = f"{row.error_class}: {row.error_start}" if row.error_start else row.error_class
    return format_html(
        '<div style="min-width: 18rem; overflow-wrap: anywhere">{}<br><small>{}</small></div>',
        error,
        payload_start(row),
    )


Action = Callable[..., int]


class DeadLetterAdmin(MessageAdmin):
    """Letters cannot be edited: they are evidence. The actions ask for a reason and are audited."""

    list_before_template = "kafka_bridge/dead_letter_counts.html"
    list_filter = (GroupFilter, TopicFilter, ErrorFilter, StateFilter)
    list_display = (
        "id", column("state", lambda row: row.state, _STATE_COLOURS), error_start, position, "replays", seen,
    )  # fmt: skip
    not_in_the_list = ("payload", "headers", "traceback", "error_message", "last_error")
    shown = (
        "id", column("state", lambda row: row.state), actions_link, "consumer_group", "error_class", error_text,
        "replays", "last_error", "topic", "partition", "offset", "message_timestamp", "event_type", "event_id",
        event_link, exact_utc("created_at"), exact_utc("last_seen_at"), exact_utc("closed_at"), traceback_text,
        key_text, headers_text, json_text, raw_text,
    )  # fmt: skip
    actions = ("redrive", "discard", "release")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        error_start = Left("error_message", _ERROR_SHOWN_IN_LIST)
        rows: QuerySet[Any] = super().get_queryset(request).annotate(error_start=error_start)
        return rows

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(DISCARD_PERMISSION)

    def has_redrive_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(REDRIVE_PERMISSION)

    @admin.action(description="Redrive: replay, after a preview", permissions=["redrive"])
    def redrive(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse:
        letter_ids = list(queryset.order_by("pk").values_list("pk", flat=True)[: _MOST_IN_ADDRESS + 1])
        if len(letter_ids) > _MOST_IN_ADDRESS:
            messages.error(
                request,
                f"At most {_MOST_IN_ADDRESS} dead letters can be selected. This form takes all open ones that match.",
            )
            query = {name: request.GET[name] for name in ("group", "topic", "error") if name in request.GET}
            return HttpResponseRedirect(f"{reverse('ops:redrives', query=query)}#new", status=303)
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
        # Django compares them with the column: a text that is no number would be an error of this page.
        if any(number_in(text) is None for text in request.POST.getlist(ACTION_CHECKBOX_NAME)):
            raise BadRequest("A selected dead letter has no such id.")
        counted = {"letter_counts": _counts(request), "may_redrive": self.has_redrive_permission(request)}
        return super().changelist_view(request, {**(extra_context or {}), **counted})

    def _for_a_reason(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter], action: str, done: str, act: Action
    ) -> HttpResponse:
        """Ask for the reason, then act on the selected letters: the newest, if more are selected than it takes."""
        letters = list(queryset.order_by("-pk").values_list("pk", "consumer_group", "error_class")[: MOST_AT_ONCE + 1])
        is_more = len(letters) > MOST_AT_ONCE
        letters = letters[:MOST_AT_ONCE]
        back = HttpResponseRedirect(request.get_full_path(), status=303)
        reason = request.POST.get("reason", "").strip()
        if not reason or len(reason) > LONGEST_REASON or "\0" in reason:
            context = {
                **self.admin_site.each_context(request),
                "title": f"{action.capitalize()} dead letters",
                "opts": self.opts,
                "action": action,
                "address": request.get_full_path(),
                "letter_ids": [letter_id for letter_id, _, _ in letters],
                "kinds": Counter((group, error_class) for _, group, error_class in letters).most_common(),
                "is_more": is_more,
                "checkbox_name": ACTION_CHECKBOX_NAME,
                "longest_reason": LONGEST_REASON,
                "most_replays": MOST_REPLAYS,
                "is_wrong": "reason" in request.POST,
            }
            return TemplateResponse(request, "kafka_bridge/dead_letter_reason.html", context)
        try:
            number = act([letter_id for letter_id, _, _ in letters], actor=request.user.get_username(), reason=reason)
        except DatabaseError as error:
            if not is_transient(error):
                raise
            messages.error(request, f"Nothing was {done}, try again: {first_line(error)}")
            return back
        rest = "" if number == len(letters) else " Of the others the state did not allow it."
        messages.success(request, f"{number} of {len(letters)} dead letters {done}.{rest}")
        return back
