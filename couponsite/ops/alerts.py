"""Open and ended alerts, and the silences of their rules."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from kafka_bridge.models import AlertSilence
from kafka_bridge.operating.alert_lists import ended_alerts, open_alerts
from kafka_bridge.operating.alerts import alert_rules
from kafka_bridge.operating.audit import LONGEST_REASON
from kafka_bridge.operating.silences import end_silence, silence_rule, silences

from .access import staff_page
from .documents import runbook_names, with_runbooks
from .layout import render_page, report_errors
from .redis_state import redis_glance

SILENCE_PERMISSION = "kafka_bridge.silence_alerts"
_MOST_OPEN = 200
_HOUR = 3600
_DURATIONS = (
    (_HOUR // 2, "30 minutes"),
    (_HOUR, "1 hour"),
    (4 * _HOUR, "4 hours"),
    (24 * _HOUR, "1 day"),
    (7 * 24 * _HOUR, "7 days"),
)


class SilenceForm(forms.Form):
    """Which rule to silence, for how long and why."""

    rule = forms.CharField(
        max_length=AlertSilence._meta.get_field("rule").max_length,
        widget=forms.TextInput(attrs={"list": "rules", "autocomplete": "off"}),
    )
    seconds = forms.TypedChoiceField(label="For", choices=_DURATIONS, coerce=int, initial=_HOUR)
    reason = forms.CharField(max_length=AlertSilence._meta.get_field("reason").max_length)

    def clean_rule(self) -> str:
        """Refuse what is no rule: a misspelt silence would silence nothing."""
        rule: str = self.cleaned_data["rule"]
        known = _rule_names()
        is_known = rule in known or any(rule.startswith(f"{name}-") for name in known)
        if not is_known and not open_alerts().filter(rule=rule).exists():
            raise forms.ValidationError("There is no such rule.")
        return rule


class UnsilenceForm(forms.Form):
    """Whose silence to end, and why."""

    rule = forms.CharField(max_length=AlertSilence._meta.get_field("rule").max_length)
    reason = forms.CharField(max_length=LONGEST_REASON)


@require_safe
@staff_page("kafka_bridge.view_alert")
def alerts(request: HttpRequest) -> HttpResponse:
    """List the open alerts, those that ended last, and the silences; ``rule`` searches the ended ones."""
    rule = request.GET.get("rule", "").strip()
    initial = {"rule": request.GET.get("silence", "")[:64]}
    return _page(request, SilenceForm(initial=initial, label_suffix=""), rule=rule)


@require_POST
@staff_page("kafka_bridge.view_alert", SILENCE_PERMISSION)
def silence(request: HttpRequest) -> HttpResponse:
    """Silence a rule; with a form that is not valid, show the page again (400)."""
    form = SilenceForm(request.POST, label_suffix="")
    if not form.is_valid():
        return _page(request, form, status=400)
    until = silence_rule(**form.cleaned_data, actor=request.user.get_username())
    messages.success(request, f"{form.cleaned_data['rule']} is silenced until {until:%Y-%m-%d %H:%M} UTC.")
    return _back()


@require_POST
@staff_page("kafka_bridge.view_alert", SILENCE_PERMISSION)
def unsilence(request: HttpRequest) -> HttpResponse:
    """End the silence of a rule; without a reason, show the page again (400)."""
    form = UnsilenceForm(request.POST)
    if not form.is_valid():
        report_errors(request, form)
        return _page(request, SilenceForm(label_suffix=""), status=400)
    if end_silence(**form.cleaned_data, actor=request.user.get_username()):
        messages.success(request, f"{form.cleaned_data['rule']} is no longer silenced.")
    else:
        messages.warning(request, "That rule was not silenced any more.")
    return _back()


def _rule_names() -> set[str]:
    """Return the names of all rules: those of other processes are known here by their runbooks."""
    return {*alert_rules(), *runbook_names()}


def _back() -> HttpResponse:
    return HttpResponseRedirect(reverse("ops:alerts"), status=303)


def _page(request: HttpRequest, form: SilenceForm, *, rule: str = "", status: int = 200) -> HttpResponse:
    opened = with_runbooks(open_alerts()[:_MOST_OPEN])
    context = {
        "alerts": opened,
        "ended": with_runbooks(ended_alerts(rule)),
        "searched": rule,
        "redis": redis_glance(),
        "silences": silences(),
        "form": form,
        "longest_reason": LONGEST_REASON,
        "rules": sorted({*_rule_names(), *(alert.rule for alert in opened)}),
        "may_silence": request.user.has_perm(SILENCE_PERMISSION),
    }
    return render_page(request, "ops/alerts.html", context, status=status)
