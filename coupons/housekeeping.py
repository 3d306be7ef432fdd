"""The housekeeping tasks of this app."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models.functions import Now

from common.processes.lifecycle import StopFlag
from common.redis_client import redis_connection
from kafka_bridge.operating.housekeeping import HousekeepingTask, register_task
from kafka_bridge.operating.row_pruning import prune_oldest

from .admission.gate.store import GateStore
from .admission.reservations import GATE
from .models import Coupon

# Longer than any outage of housekeeping; each run reads few rows.
_LEFT_FOR = timedelta(days=7)
_MOST_GATES = 1000


def register() -> None:
    """Register the tasks; called once, when the app is ready."""
    register_task(HousekeepingTask("stored notifications", "NOTIFICATION_RETENTION_DAYS", _prune_notifications))
    register_task(HousekeepingTask("gates of rehearsals", "REHEARSAL_RETENTION_HOURS", rehearsal_gates_delete))


def rehearsal_gates_delete(stop: StopFlag) -> int:
    """Delete the gates in Redis of rehearsals that were killed before they did; returns the number of keys deleted.

    Looks at the copies that closed between ``REHEARSAL_RETENTION_HOURS`` and a week ago. Raises database errors and
    RedisError.
    """
    kept = timedelta(hours=settings.REHEARSAL_RETENTION_HOURS)
    closed = Coupon.objects.filter(
        rehearsal=True, admission=GATE, closes_at__lt=Now() - kept, closes_at__gt=Now() - kept - _LEFT_FOR
    )
    deleted = 0
    for clone_id in closed.order_by("-id").values_list("id", flat=True)[:_MOST_GATES]:
        if stop:
            break
        deleted += int(redis_connection().delete(*GateStore(clone_id).keys))
    return deleted


def _prune_notifications(stop: StopFlag) -> int:
    # Once kept, a notification is only shown in the admin.
    kept = timedelta(days=settings.NOTIFICATION_RETENTION_DAYS)
    return prune_oldest("coupons_notification", "created_at", kept, stop)
