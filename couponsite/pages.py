"""Public pages of the site."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from common.api.problems import is_outage, report_outage
from coupons import selectors

_MAX_SHOWN = 100


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """List the coupons with their state; a page with status 503 while the database is unavailable."""
    try:
        coupons = selectors.coupon_list(limit=_MAX_SHOWN)
    except Exception as error:
        if not is_outage(error):
            raise
        report_outage(error)
        return render(request, "start.html", {"unavailable": True}, status=503)
    return render(request, "start.html", {"coupons": coupons})
