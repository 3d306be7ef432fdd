"""Go or no-go before an event of a coupon, and the button that sends a test alert."""

from __future__ import annotations

from collections import Counter

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from coupons.models import Coupon
from coupons.policy import is_coupon_type
from coupons.preflight.run import CROWD_FACTOR, preflight
from couponsite.error_pages import refusal
from kafka_bridge.operating.alert_test import alert_test_send
from kafka_bridge.operating.audit import LONGEST_REASON
from kafka_bridge.operating.preflight import Verdict, is_go

from .access import staff_page
from .alerts import SILENCE_PERMISSION
from .layout import render_page, report_errors

_MOST_REQUESTS = 1_000_000_000
_ORDER = (Verdict.NO_GO, Verdict.WARN, Verdict.UNKNOWN, Verdict.GO)


class AlertTestForm(forms.Form):
    """Why a test alert is sent."""

    reason = forms.CharField(max_length=LONGEST_REASON)


@require_safe
@staff_page("coupons.view_coupon", "kafka_bridge.view_alert")
def preflight_page(request: HttpRequest, coupon_type: str) -> HttpResponse:
    """Show the lines of ``preflight``; ``expect`` in the query is the number of requests."""
    if not _exists(coupon_type):
        return _unknown(request)
    text = request.GET.get("expect", "")
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_REQUESTS))
    expected = min(max(int(text), 1), _MOST_REQUESTS) if is_number else None
    # What is to be mended comes first; lines of one verdict keep the order of the command.
    lines = sorted(preflight(coupon_type, expected), key=lambda line: _ORDER.index(line.verdict))
    verdicts = Counter(str(line.verdict) for line in lines)
    context = {
        "coupon_type": coupon_type,
        "lines": lines,
        "verdicts": list(verdicts.items()),
        "is_go": is_go(lines),
        "expected": expected,
        "crowd_factor": CROWD_FACTOR,
        "longest_reason": LONGEST_REASON,
        "may_send": request.user.has_perm(SILENCE_PERMISSION),
    }
    return render_page(request, "ops/preflight.html", context)


@require_POST
@staff_page("coupons.view_coupon", "kafka_bridge.view_alert", SILENCE_PERMISSION)
def send_test_alert(request: HttpRequest, coupon_type: str) -> HttpResponse:
    """Send a test alert; the page shows whether it was delivered when it is loaded again.

    Without a reason none is sent, and the page says so.
    """
    if not _exists(coupon_type):
        return _unknown(request)
    form = AlertTestForm(request.POST)
    if not form.is_valid():
        report_errors(request, form)
        return HttpResponseRedirect(reverse("ops:preflight", args=[coupon_type]), status=303)
    alert_test_send(actor=request.user.get_username(), reason=form.cleaned_data["reason"])
    messages.success(request, "The test alert is under way: reload the page in some seconds.")
    return HttpResponseRedirect(reverse("ops:preflight", args=[coupon_type]), status=303)


def _exists(coupon_type: str) -> bool:
    return is_coupon_type(coupon_type) and Coupon.objects.filter(coupon_type=coupon_type, rehearsal=False).exists()


def _unknown(request: HttpRequest) -> HttpResponse:
    return refusal(request, "not_found", "There is no such coupon.")
