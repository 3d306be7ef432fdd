"""Redrives: create one from a filter or a selection of dead letters, see what it would do, and follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from common.admin_base import number_in
from common.postgres.clock import database_time
from kafka_bridge.consuming.dead_letters import FOREIGN, RELAY
from kafka_bridge.models import Redrive
from kafka_bridge.operating.audit import LONGEST_REASON
from kafka_bridge.redriving.letter_filter import LetterFilter
from kafka_bridge.redriving.redrives import (
    DEFAULT_RATE,
    ENDED,
    MOST_RATE,
    PREVIEW_VALID,
    REDRIVE_PERMISSION,
    TYPED_ABOVE,
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

from .access import staff_page
from .layout import render_page

VIEW_PERMISSION = "kafka_bridge.view_redrive"

_MOST_SHOWN = 50
_MOST_SELECTED = 1000
_MOST_EXAMPLES = 5

_State = Redrive.State
_LOOKS = {
    _State.PREPARING: "is-quiet",
    _State.PREVIEWED: "is-warning",
    _State.RUNNING: "is-ok",
    _State.PAUSED: "is-warning",
    _State.DONE: "is-quiet",
    _State.CANCELLED: "is-quiet",
}
_WORDS = {
    "applied": "applied",
    "done_already": "done already",
    "failed": "still fail",
    "quarantined": "quarantined",
    "unreplayable": "cannot be replayed",
    "not_previewed": "not previewed",
}


class RedriveForm(forms.Form):
    """A new redrive: of the ids given, or of the open letters that match the filter."""

    name = forms.CharField(max_length=100)
    reason = forms.CharField(max_length=LONGEST_REASON)
    rate = forms.IntegerField(label="Letters a second at most", min_value=1, max_value=MOST_RATE, initial=DEFAULT_RATE)
    ids = forms.CharField(required=False, widget=forms.HiddenInput)
    group = forms.ChoiceField(label="Consumer group", required=False)
    topic = forms.CharField(max_length=249, required=False)
    error = forms.CharField(label="Error class", max_length=200, required=False)
    since = forms.DateTimeField(label="Created from (UTC)", required=False)
    until = forms.DateTimeField(label="Created before (UTC)", required=False)

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


class _Line(NamedTuple):
    """Letters with one result: how many, and examples as (letter, detail)."""

    words: str
    number: int
    examples: list[tuple[int, str]]


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
    return _to_redrive(redrive_id)


def _sentence(error: RedriveRefused) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _to_redrive(redrive_id: int) -> HttpResponse:
    return HttpResponseRedirect(reverse("ops:redrive", args=[redrive_id]), status=303)


def _list_page(request: HttpRequest, form: RedriveForm, *, status: int = 200) -> HttpResponse:
    context = {
        "redrives": [(item, _LOOKS[_State(item.state)], sum(item.counts.values())) for item in _newest()],
        "form": form,
        "selected": [text for text in str(form["ids"].value() or "").split(",") if text.strip()],
        "may_redrive": request.user.has_perm(REDRIVE_PERMISSION),
    }
    return render_page(request, "ops/redrives.html", context, status=status)


def _newest() -> list[Redrive]:
    return list(Redrive.objects.defer("preview", "histogram").order_by("-id")[:_MOST_SHOWN])


def _state(request: HttpRequest, redrive_id: int) -> dict[str, Any]:
    found = Redrive.objects.filter(pk=redrive_id).first()
    if found is None:
        raise Http404
    now = database_time()
    age = None if found.previewed_at is None else now - found.previewed_at
    return {
        "redrive": found,
        "look": _LOOKS[_State(found.state)],
        "done": sum(found.counts.values()),
        "results": [
            _Line(_WORDS.get(result, result), number, _examples(found, result))
            for result, number in sorted(found.counts.items())
        ],
        "waiting": list(
            found.items.filter(done_at=None)
            .exclude(detail="")
            .order_by("id")
            .values_list("letter_id", "detail")[:_MOST_EXAMPLES]
        ),
        "preview": found.preview and _preview_lines(found.preview),
        "preview_age": age,
        "is_old": age is not None and age > PREVIEW_VALID,
        "needs_count": found.total > TYPED_ABOVE,
        "has_ended": found.state in ENDED,
        "may_redrive": request.user.has_perm(REDRIVE_PERMISSION),
        "most_rate": MOST_RATE,
        "read_at": now,
    }


def _examples(found: Redrive, result: str) -> list[tuple[int, str]]:
    rows = found.items.filter(result=result).order_by("id").values_list("letter_id", "detail")
    return list(rows[:_MOST_EXAMPLES])


def _preview_lines(preview: dict[str, Any]) -> list[_Line]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(preview["kinds"].items()))
    words = {**_WORDS, "applied": f"would be applied: {kinds}", "done_already": "are done already"}
    return [
        _Line(words.get(result, result), number, [(item[0], item[1]) for item in preview["examples"][result]])
        for result, number in sorted(preview["counts"].items())
    ]
