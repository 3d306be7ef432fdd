"""The housekeeping tasks of this app."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.operating.housekeeping import HousekeepingTask, register_task
from kafka_bridge.operating.row_pruning import prune_oldest


def register() -> None:
    """Register the tasks; called once, when the app is ready."""
    register_task(HousekeepingTask("stored notifications", "NOTIFICATION_RETENTION_DAYS", _prune_notifications))


def _prune_notifications(stop: StopFlag) -> int:
    # Once kept, a notification is only shown in the admin.
    kept = timedelta(days=settings.NOTIFICATION_RETENTION_DAYS)
    return prune_oldest("coupons_notification", "created_at", kept, stop)
