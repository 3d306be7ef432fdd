"""Consumer groups, the relay and workers: what each does now, and pausing, resuming and instructing them."""

from __future__ import annotations

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from kafka_bridge.errors import UnknownTarget
from kafka_bridge.models import GroupPause, PartitionInstruction
from kafka_bridge.operating.group_pauses import PauseTarget, describe_stopped, find_target, pause, resume
from kafka_bridge.operating.partition_instructions import instruct

from .access import staff_page
from .group_states import group_states
from .layout import render_page

PAUSE_PERMISSION = "kafka_bridge.pause_groups"
_PAUSE, _RESUME = "pause", "resume"
_INSTRUCTIONS = {action.value: action for action in PartitionInstruction.Action}


class ControlForm(forms.Form):
    """What to do with a group or worker, or with a partition of a group, and why."""

    action = forms.ChoiceField(choices=[(name, name) for name in (_PAUSE, _RESUME, *_INSTRUCTIONS)])
    name = forms.CharField(max_length=64)
    topic = forms.CharField(max_length=249, required=False)
    partition = forms.IntegerField(min_value=0, max_value=2**31 - 1, required=False)
    offset = forms.IntegerField(min_value=0, max_value=2**63 - 1, required=False)
    reason = forms.CharField(max_length=GroupPause._meta.get_field("reason").max_length)

    def clean(self) -> None:
        """Refuse a topic without its partition, and an instruction without what it is about."""
        values = self.cleaned_data
        if bool(values.get("topic")) != (values.get("partition") is not None):
            raise forms.ValidationError("A topic and its number name a partition.")
        if values.get("action") in _INSTRUCTIONS and not values.get("topic"):
            raise forms.ValidationError("This is done to a partition.")
        if (values.get("action") == PartitionInstruction.Action.DEAD_LETTER) != (values.get("offset") is not None):
            raise forms.ValidationError("The offset is that of the message to be dead-lettered.")


@require_safe
@staff_page("kafka_bridge.view_grouppause")
def groups(request: HttpRequest) -> HttpResponse:
    """List groups and workers, those that need attention first, with their partitions."""
    context = {
        "groups": group_states(),
        "may_pause": request.user.has_perm(PAUSE_PERMISSION),
        "outbox_limit": settings.OUTBOX_MAX_AGE_SECONDS,
    }
    return render_page(request, "ops/groups.html", context)


@require_POST
@staff_page("kafka_bridge.view_grouppause", PAUSE_PERMISSION)
def control(request: HttpRequest) -> HttpResponse:
    """Pause, resume or instruct; the page says what was done, or why nothing was."""
    data = request.POST.copy()
    # In the address of the one button that needs it: the other buttons of its form must not send an offset.
    if "offset" in request.GET:
        data["offset"] = request.GET["offset"]
    form = ControlForm(data)
    if form.is_valid():
        values = form.cleaned_data
        try:
            target = find_target(values["name"], values["topic"] or None, values["partition"])
        except UnknownTarget as error:
            messages.error(request, f"Nothing was done: {error}.")
        else:
            _apply(request, target, values["action"], values["reason"], values["offset"])
    else:
        why = " ".join(f"{field}: {' '.join(map(str, errors))}" for field, errors in form.errors.items())
        messages.error(request, f"Nothing was done. {why}")
    return HttpResponseRedirect(reverse("ops:groups"), status=303)


def _apply(request: HttpRequest, target: PauseTarget, action: str, reason: str, offset: int | None) -> None:
    actor = request.user.get_username()
    if action == _PAUSE:
        found, is_new = pause(target, actor=actor, reason=reason)
        if is_new:
            messages.success(request, f"{describe_stopped(target)} is paused; every process obeys within two seconds.")
        else:
            messages.warning(request, f"{target} was paused already, by {found.actor}.")
    elif action == _RESUME:
        if resume(target, actor=actor, reason=reason):
            messages.success(request, f"{describe_stopped(target)} is resumed.")
        else:
            messages.warning(request, f"{target} was not paused any more.")
    else:
        instruct(target, _INSTRUCTIONS[action], actor=actor, reason=reason, offset=offset)
        messages.success(
            request, f"The consumer of {target} obeys within two seconds: reload this page to read its answer."
        )
