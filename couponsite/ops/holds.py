"""Holds of topics and keys, and the rows of the outbox that wait for them or for a topic that accepts nothing."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from common.bigint import MAX_BIGINT
from kafka_bridge.models import HeldMessage, OutboxHold
from kafka_bridge.operating.operator_holds import (
    PERMISSION,
    TopicHeld,
    UnknownTopic,
    describe,
    held_retry,
    hold_messages,
    hold_release,
    key_text,
    topic_names,
)
from kafka_bridge.operating.operator_holds import holds as holds_in_force
from kafka_bridge.outbox.held_rows import held_by_key, held_by_topic

from .access import staff_page
from .layout import render_page, report_errors

VIEW_PERMISSION = "kafka_bridge.view_outboxhold"
_MOST_HOLDS = 200
_FOR_THE_KEY = HeldMessage.Reason.KEY
_LONGEST_TOPIC = OutboxHold._meta.get_field("topic").max_length
_LONGEST_REASON = OutboxHold._meta.get_field("reason").max_length
_LONGEST_KEY = 1000


class HoldForm(forms.Form):
    """Which topic or key to hold, and why. ``clean`` adds ``raw_key``: the key's bytes, None for the whole topic."""

    topic = forms.CharField(
        max_length=_LONGEST_TOPIC, widget=forms.TextInput(attrs={"list": "topics", "autocomplete": "off"})
    )
    key = forms.CharField(
        label="Key (empty: the whole topic)",
        max_length=_LONGEST_KEY,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    key_format = forms.ChoiceField(label="Key is", choices=[("text", "text"), ("hex", "hex")], initial="text")
    reason = forms.CharField(max_length=_LONGEST_REASON)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        key = cleaned.get("key", "")
        if not key:
            return cleaned | {"raw_key": None}
        if cleaned.get("key_format") == "text":
            return cleaned | {"raw_key": key.encode()}
        try:
            return cleaned | {"raw_key": bytes.fromhex(key)}
        except ValueError:
            raise forms.ValidationError({"key": "That is no hex: two digits for each byte."}) from None


class ReleaseForm(forms.Form):
    """Which hold to release, and why."""

    hold = forms.IntegerField(min_value=1, max_value=MAX_BIGINT)
    reason = forms.CharField(max_length=_LONGEST_REASON)


class RetryForm(forms.Form):
    """Which topic's held rows to try, and why."""

    topic = forms.CharField(max_length=_LONGEST_TOPIC)
    reason = forms.CharField(max_length=_LONGEST_REASON)


@require_safe
@staff_page(VIEW_PERMISSION)
def holds(request: HttpRequest) -> HttpResponse:
    """List the holds, and the held rows by topic and by key."""
    return _page(request, HoldForm(label_suffix=""))


@require_POST
@staff_page(VIEW_PERMISSION, PERMISSION)
def hold(request: HttpRequest) -> HttpResponse:
    """Hold a topic or a key; with a form that is not valid, show the page again (400)."""
    form = HoldForm(request.POST, label_suffix="")
    if not form.is_valid():
        return _page(request, form, status=400)
    values = form.cleaned_data
    try:
        made, is_new = hold_messages(
            topic=values["topic"],
            key=values["raw_key"],
            actor=request.user.get_username(),
            reason=values["reason"],
        )
    except UnknownTopic:
        form.add_error("topic", "There is no such topic.")
        return _page(request, form, status=400)
    what = describe(made.topic, made.key)
    if is_new:
        messages.success(request, f"Held: {what}. Later events of it wait until it is released.")
    else:
        messages.warning(request, f"It is held already: {what} ({made.reason}).")
    return _back()


@require_POST
@staff_page(VIEW_PERMISSION, PERMISSION)
def release(request: HttpRequest) -> HttpResponse:
    """Release a hold."""
    form = ReleaseForm(request.POST)
    if not form.is_valid():
        return _refused(request, form)
    values = form.cleaned_data
    what = hold_release(hold_id=values["hold"], actor=request.user.get_username(), reason=values["reason"])
    if what is None:
        messages.warning(request, "That hold was released before.")
    else:
        messages.success(request, f"Released: {what}. Its rows are sent in their order.")
    return _back()


@require_POST
@staff_page(VIEW_PERMISSION, PERMISSION)
def retry(request: HttpRequest) -> HttpResponse:
    """Have relays try the held rows of a topic now; if an operator holds it meanwhile, say so."""
    form = RetryForm(request.POST)
    if not form.is_valid():
        return _refused(request, form)
    topic = form.cleaned_data["topic"]
    try:
        is_tried = held_retry(topic=topic, actor=request.user.get_username(), reason=form.cleaned_data["reason"])
    except TopicHeld as error:
        hold = error.hold
        messages.warning(
            request,
            f"Nothing is tried: {hold.actor} holds topic {topic} ({hold.reason}). Release it: its rows are then sent.",
        )
        return _back()
    if is_tried:
        messages.success(request, f"The relay tries topic {topic} now. If rows stay held, the page shows the error.")
    else:
        messages.warning(request, f"No row of topic {topic} is held any more.")
    return _back()


def _back() -> HttpResponse:
    return HttpResponseRedirect(reverse("ops:holds"), status=303)


def _refused(request: HttpRequest, form: forms.Form) -> HttpResponse:
    report_errors(request, form)
    return _page(request, HoldForm(label_suffix=""), status=400)


def _page(request: HttpRequest, form: HoldForm, *, status: int = 200) -> HttpResponse:
    found = list(holds_in_force()[:_MOST_HOLDS])
    held_topics = {one.topic for one in found if one.key is None}
    held_keys = {(one.topic, bytes(one.key)) for one in found if one.key is not None}
    by_topic, by_key = held_by_topic(), held_by_key()
    context = {
        "holds": [(one, None if one.key is None else key_text(bytes(one.key))) for one in found],
        "by_topic": [(rows, rows.topic in held_topics) for rows in by_topic],
        "by_key": [
            (rows, key_text(rows.key), rows.topic in held_topics or (rows.topic, rows.key) in held_keys)
            for rows in by_key
        ],
        # Rows that wait for their key alone go on with it: a try would find nothing to do.
        "retriable": sorted({rows.topic for rows in by_topic if rows.reason != _FOR_THE_KEY} - held_topics),
        "keys": sorted({(route.topic, route.key) for route in settings.KAFKA_ROUTES.values()}),
        "form": form,
        "topics": sorted({*topic_names(), *(rows.topic for rows in by_topic)}),
        "may_hold": request.user.has_perm(PERMISSION),
    }
    return render_page(request, "ops/holds.html", context, status=status)
