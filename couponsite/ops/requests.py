"""The way of one request, and the search for requests by user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_safe

from common.admin_base import number_in, uuid_in
from coupons.issuance.status_cache import MOST_RECENT
from coupons.models import UserCoupon
from coupons.policy import is_coupon_type
from coupons.request_search import MOST_COUPONS, user_requests
from coupons.request_trace import request_trace, user_coupon_request
from kafka_bridge.outbox.event_search import made_at
from orders.models import Order

from .access import staff_page
from .layout import render_page
from .remedies import remedy_of
from .request_steps import request_steps
from .steps import exact

PERMISSIONS = ("coupons.view_issuerequest", "coupons.view_usercoupon", "kafka_bridge.view_outboxmessage")
_WHAT_IS_SEARCHED = "Search by a request id (UUID), a user id or an order id (1 to 9223372036854775807)."


@require_safe
@staff_page(*PERMISSIONS)
def request_way(request: HttpRequest, request_id: UUID) -> HttpResponse:
    """Show the way of a request; 404 with what can be said of an unknown id.

    ``?user=<id>&coupon=<id>`` say in whose gate to look for a request that PostgreSQL does not know.
    """
    trace = request_trace(
        request_id, coupon_id=number_in(request.GET.get("coupon", "")), user_id=number_in(request.GET.get("user", ""))
    )
    context: dict[str, Any] = {"request_id": request_id, "query": str(request_id), "trace": trace}
    if not trace.exists:
        context |= {"made_at": _made_at(request_id), "retention_hours": settings.OUTBOX_RETENTION_HOURS}
        return render_page(request, "ops/request_unknown.html", context, status=404)
    context["steps"] = request_steps(trace)
    context["remedy"] = None if trace.problem is None else remedy_of(trace.problem)
    return render_page(request, "ops/request.html", context)


@require_safe
@staff_page(*PERMISSIONS)
def requests_search(request: HttpRequest) -> HttpResponse:
    """Search by request id, user id or order id (``q``), or list a user's requests (``user``, ``coupon_type``)."""
    query = request.GET.get("q", "").strip()
    if query and (request_id := uuid_in(query)) is not None:
        return redirect("ops:request", request_id=request_id)
    user_id = number_in(request.GET.get("user", "").strip() or query)
    coupon_type = request.GET.get("coupon_type", "").strip()
    context: dict[str, Any] = {
        "query": query or request.GET.get("user", ""),
        "coupon_type": coupon_type,
        "user_id": user_id,
        "most_recent": MOST_RECENT,
        "most_coupons": MOST_COUPONS,
    }
    if user_id is not None:
        context["found"] = user_requests(user_id, coupon_type=coupon_type if is_coupon_type(coupon_type) else "")
        context["order"] = Order.objects.filter(pk=user_id).first() if query and _may_see_orders(request) else None
    elif query or request.GET.get("user"):
        context["refusal"] = _WHAT_IS_SEARCHED
    return render_page(request, "ops/requests.html", context)


@require_safe
@staff_page(*PERMISSIONS)
def no_request_id(request: HttpRequest, text: str) -> HttpResponse:
    """Show the search to an address with ``text`` in place of an id (404); an id in another form is led to its page."""
    if (request_id := uuid_in(text)) is not None:
        return redirect("ops:request", request_id=request_id)
    context = {"query": text[:64], "refusal": f"“{text[:64]}” is not an id. {_WHAT_IS_SEARCHED}"}
    return render_page(request, "ops/requests.html", context, status=404)


@require_safe
@staff_page(*PERMISSIONS)
def request_of_coupon(request: HttpRequest, user_coupon_id: int) -> HttpResponse:
    """Lead to the request that got a user's coupon."""
    coupon = UserCoupon.objects.filter(pk=user_coupon_id).first()
    request_id = None if coupon is None else user_coupon_request(coupon)
    if request_id is not None:
        return redirect("ops:request", request_id=request_id)
    context = {
        "user_coupon_id": user_coupon_id,
        "coupon": coupon,
        "retention_hours": settings.OUTBOX_RETENTION_HOURS,
        "query": "",
    }
    return render_page(request, "ops/request_unknown.html", context, status=404)


def _may_see_orders(request: HttpRequest) -> bool:
    return request.user.has_perm("orders.view_order")


def _made_at(request_id: UUID) -> str:
    """Return when an id was made; empty for an id without a time, or with one beyond the calendar."""
    seconds = made_at(request_id)
    try:
        return "" if seconds is None else exact(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError):
        return ""
