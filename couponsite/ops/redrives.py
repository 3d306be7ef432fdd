"""Redrives: create one from a filter or a selection of dead letters, see what it would do, and follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from common.admin_base import number_in
from kafka_bridge.consuming.dead_letters import FOREIGN, RELAY
from kafka_bridge.models import MOST_RATE, Redrive
from kafka_bridge.operating.audit import LONGEST_REASON
from kafka_bridge.operating.dead_letter_counts import open_dead_letters
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import (
    DEFAULT_RATE,
    REDRIVE_PERMISSION,
    RedriveRefused,
    redrive_cancel,
    redrive_create,
    redrive_pause,
    redrive_preview,
    redrive_resume,
    redrive_set_rate,
    redrive_start,
)
from kafka_bridge.registry import unprefixed
from kafka_bridge.routes import topics_of

from .access import staff_page
from .layout import render_page
from .redrive_state import progress_of, redrive_state

VIEW_PERMISSION = "kafka_bridge.view_redrive"

_MOST_SHOWN = 50
_MOST_SELECTED = 1000


_DONE = {
    "start": "Started: at most {rate} letters a second are replayed.",
    "preview": "A new preview is being made.",
    "rate": "From now on at most {rate} letters a second are replayed.",
    "pause": "Paused: within two seconds nothing more is replayed.",
    "resume": "Resumed: at most {rate} letters a second are replayed.",
    "cancel": "Cancelled: letters that were not replayed stay open.",
}


def _suggested(list_id: str) -> forms.TextInput:
    return forms.TextInput(attrs={"list": list_id, "autocomplete": "off", "placeholder": "all"})


def _moment() -> forms.DateTimeInput:
    # Of the browser's own kind: a text field would not say how a time is written.
    return forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S")


class RedriveForm(forms.Form):
    """A new redrive: of the ids given, or of the open letters that match the filter."""

    name = forms.CharField(max_length=100)
    reason = forms.CharField(max_length=LONGEST_REASON)
    rate = forms.IntegerField(label="Letters a second at most", min_value=1, max_value=MOST_RATE, initial=DEFAULT_RATE)
    ids = forms.CharField(required=False, widget=forms.HiddenInput)
    group = forms.ChoiceField(label="Consumer group", required=False)
    topic = forms.CharField(max_length=249, required=False, widget=_suggested("topics"))
    error = forms.CharField(label="Error class", max_length=200, required=False, widget=_suggested("errors"))
    since = forms.DateTimeField(label="Created from (UTC)", required=False, widget=_moment())
    until = forms.DateTimeField(label="Created before (UTC)", required=False, widget=_moment())

    def __init__(self, data: Any = None, **options: Any) -> None:
        super().__init__(data, label_suffix="", **options)
        group = self.fields["group"]
        assert isinstance(group, forms.ChoiceField)
        group.choices = [("", "all"), *((name, name) for name in (*settings.KAFKA_GROUPS, RELAY, FOREIGN))]

    def clean_ids(self) -> list[int]:
        """Return the selected ids, none for a filter."""
        texts = [text for text in self.cleaned_data["ids"].split(",") if text.strip()]
        ids = [number for text in texts if (number := number_in(text.strip())) is not None]
        if len(ids) < len(texts) or len(ids) > _MOST_SELECTED:
            raise forms.ValidationError(f"Select at most {_MOST_SELECTED} dead letters by their ids, or use a filter.")
        return ids

    @property
    def letters(self) -> LetterFilter | list[int]:
        """The letters that a valid form names."""
        data = self.cleaned_data
        if data["ids"]:
            return list(data["ids"])
        return LetterFilter(unprefixed(data["topic"]), data["group"], data["error"], data["since"], data["until"])


class ActionForm(forms.Form):
    """What an action on a redrive needs: a reason, and what only some actions read."""

    reason = forms.CharField(max_length=LONGEST_REASON)
    rate = forms.IntegerField(required=False, min_value=1, max_value=MOST_RATE)
    count = forms.IntegerField(required=False, min_value=0)
    accepts_delay = forms.BooleanField(required=False)


@require_safe
@staff_page(VIEW_PERMISSION)
def redrives(request: HttpRequest) -> HttpResponse:
    """List the newest redrives, with a form for a new one; ``ids``, or the names of the filter, fill the form."""
    initial = {
        name: request.GET[name].replace("\0", "") for name in ("ids", "group", "topic", "error") if name in request.GET
    }
    return _list_page(request, RedriveForm(initial=initial))


@require_POST
@staff_page(VIEW_PERMISSION, REDRIVE_PERMISSION)
def create(request: HttpRequest) -> HttpResponse:
    """Create a redrive and lead to its page; with a form that is not valid, show the list again (400)."""
    form = RedriveForm(request.POST)
    if form.is_valid():
        data = form.cleaned_data
        try:
            redrive = redrive_create(
                name=data["name"],
                reason=data["reason"],
                actor=request.user.get_username(),
                letters=form.letters,
                rate=data["rate"],
            )
        except RedriveRefused as error:
            form.add_error(None, _sentence(error))
        else:
            return _to_redrive(redrive.pk)
    return _list_page(request, form, status=400)


@require_safe
@staff_page(VIEW_PERMISSION)
def redrive(request: HttpRequest, redrive_id: int) -> HttpResponse:
    """Show a redrive; ops.js refreshes its panels from ``redrive_panels``."""
    return render_page(request, "ops/redrive.html", _state(request, redrive_id))


@require_safe
@staff_page(VIEW_PERMISSION)
def redrive_panels(request: HttpRequest, redrive_id: int) -> HttpResponse:
    """Return the panels of a redrive, without the page around them."""
    return render(request, "ops/redrive_panels.html", _state(request, redrive_id))


@require_POST
@staff_page(VIEW_PERMISSION, REDRIVE_PERMISSION)
def redrive_action(request: HttpRequest, redrive_id: int, action: str) -> HttpResponse:
    """Do what a button of the page says, and lead back to it; what is refused is said there."""
    form = ActionForm(request.POST)
    if not form.is_valid():
        text = "; ".join(f"{name}: {error}" for name, errors in form.errors.items() for error in errors)
        messages.error(request, f"Not done. {text}")
        return _to_redrive(redrive_id)
    data, actor = form.cleaned_data, request.user.get_username()
    reason = data["reason"]
    actions: dict[str, Callable[[], Redrive]] = {
        "start": lambda: redrive_start(redrive_id, actor=actor, reason=reason, typed_count=data["count"]),
        "preview": lambda: redrive_preview(redrive_id, actor=actor, reason=reason, accepts_delay=data["accepts_delay"]),
        "rate": lambda: redrive_set_rate(redrive_id, rate=data["rate"] or 0, actor=actor, reason=reason),
        "pause": lambda: redrive_pause(redrive_id, actor=actor, reason=reason),
        "resume": lambda: redrive_resume(redrive_id, actor=actor, reason=reason),
        "cancel": lambda: redrive_cancel(redrive_id, actor=actor, reason=reason),
    }
    if action not in actions:
        raise Http404
    try:
        changed = actions[action]()
    except RedriveRefused as error:
        messages.error(request, _sentence(error))
    else:
        if changed.starts_after_preview:
            messages.warning(
                request, "The preview was older than a minute: it is made again, and if it says the same, this starts."
            )
        else:
            messages.success(request, _DONE[action].format(rate=changed.rate))
    return _to_redrive(redrive_id)


def _sentence(error: RedriveRefused) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _to_redrive(redrive_id: int) -> HttpResponse:
    return HttpResponseRedirect(reverse("ops:redrive", args=[redrive_id]), status=303)


def _list_page(request: HttpRequest, form: RedriveForm, *, status: int = 200) -> HttpResponse:
    selected = [text for text in str(form["ids"].value() or "").split(",") if text.strip()]
    may_redrive = request.user.has_perm(REDRIVE_PERMISSION)
    context = {
        "redrives": [progress_of(item) for item in _newest()],
        "form": form,
        "selected": selected,
        "open_letters": None if selected or not may_redrive else open_dead_letters(),
        "topics": sorted(topics_of(settings.KAFKA_ROUTES)),
        "may_redrive": may_redrive,
    }
    return render_page(request, "ops/redrives.html", context, status=status)


def _newest() -> list[Redrive]:
    return list(Redrive.objects.defer("preview", "histogram").order_by("-id")[:_MOST_SHOWN])


def _state(request: HttpRequest, redrive_id: int) -> dict[str, Any]:
    found = Redrive.objects.filter(pk=redrive_id).first()
    if found is None:
        raise Http404
    return redrive_state(found) | {"may_redrive": request.user.has_perm(REDRIVE_PERMISSION)}
