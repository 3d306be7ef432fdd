"""The dashboard of operators: key figures, alerts, lag, outbox, dead letters, processes and coupons."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from common.postgres.clock import database_time
from coupons.selectors import coupon_view, coupons
from kafka_bridge.message_admin import readable
from kafka_bridge.models import OutboxHold
from kafka_bridge.operating.alert_lists import open_alerts
from kafka_bridge.operating.dead_letter_counts import open_dead_letters
from kafka_bridge.operating.delivery import ON_ITS_WAY_SECONDS
from kafka_bridge.outbox.state import outbox_state

from .access import staff_page
from .documents import with_runbooks
from .layout import render_page
from .redis_state import redis_glance
from .sources import messaging, processes_by_need

_MOST_ALERTS = 50
_MOST_HOLDS = 50
_MOST_COUPONS = 50


@require_safe
@staff_page("kafka_bridge.view_alert")
def dashboard(request: HttpRequest) -> HttpResponse:
    """Show the state of the service; ops.js refreshes its panels from ``dashboard_panels``."""
    return render_page(request, "ops/dashboard.html", _state())


@require_safe
@staff_page("kafka_bridge.view_alert")
def dashboard_panels(request: HttpRequest) -> HttpResponse:
    """Return the panels of the dashboard, without the page around them."""
    return render(request, "ops/dashboard_panels.html", _state())


def _state() -> dict[str, Any]:
    """Read everything that the panels show: a fixed number of queries, each of bounded cost, and Redis."""
    outbox = outbox_state()
    return {
        "read_at": database_time(),
        "alerts": with_runbooks(open_alerts()[:_MOST_ALERTS]),
        "messaging": messaging(),
        "outbox": outbox,
        "outbox_is_late": (outbox.oldest_seconds or 0) > ON_ITS_WAY_SECONDS,
        "redis": redis_glance(),
        "holds": [
            (hold, None if hold.key is None else readable(hold.key))
            for hold in OutboxHold.objects.order_by("created_at")[:_MOST_HOLDS]
        ],
        "dead_letters": open_dead_letters(),
        "processes": processes_by_need(),
        "coupons": [(coupon_view(row), row.reserved) for row in coupons().order_by("-id")[:_MOST_COUPONS]],
        "most_coupons": _MOST_COUPONS,
    }
