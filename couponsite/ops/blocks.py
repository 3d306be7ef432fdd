"""Who blocks whom: sessions that keep others from the row of a coupon, and the state of Redis and its gates."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from redis.exceptions import RedisError

from common.processes.lifecycle import first_line
from coupons.admission.gate.overview import GateOverview, gate_overviews
from coupons.models import Coupon

from .access import staff_page
from .layout import render_page
from .redis_state import redis_state
from .sessions import prepared_transactions, sessions

_MOST_GATES = 100


class Gate(NamedTuple):
    coupon: Coupon
    overview: GateOverview


@require_safe
@staff_page("coupons.view_coupon")
def blocks(request: HttpRequest) -> HttpResponse:
    """Show the sessions that hold or wait for locks of coupons, and the gates; Redis may be away."""
    found = sessions()
    context: dict[str, Any] = {
        "sessions": found,
        "blocked": sum(bool(session.blocked_by) for session in found),
        "prepared": prepared_transactions(),
        "most_gates": _MOST_GATES,
    }
    try:
        context |= {"redis": redis_state(), "gates": _gates()}
    except RedisError as error:
        context["redis_error"] = first_line(error)
    return render_page(request, "ops/blocks.html", context)


def _gates() -> list[Gate]:
    coupons = Coupon.objects.filter(admission="gate", rehearsal=False).order_by("-id")
    newest = {coupon.pk: coupon for coupon in coupons[:_MOST_GATES]}
    return [Gate(newest[overview.coupon_id], overview) for overview in gate_overviews(newest)]
