"""The housekeeping tasks of this app."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings

from common.processes.lifecycle import StopFlag
from kafka_bridge.operating.housekeeping import HousekeepingTask, register_task
from kafka_bridge.operating.row_pruning import prune_aged


def register() -> None:
    """Register the tasks; called once, when the app is ready."""
    register_task(HousekeepingTask("idempotency keys", "IDEMPOTENCY_KEY_RETENTION_HOURS", _prune_keys))
    register_task(HousekeepingTask("order minutes", "ORDER_MINUTE_RETENTION_DAYS", _prune_minutes))


def _prune_keys(stop: StopFlag) -> int:
    kept = timedelta(hours=settings.IDEMPOTENCY_KEY_RETENTION_HOURS)
    return prune_aged("orders_idempotencykey", "created_at", kept, stop)


def _prune_minutes(stop: StopFlag) -> int:
    return prune_aged("orders_orderminute", "minute", timedelta(days=settings.ORDER_MINUTE_RETENTION_DAYS), stop)
