"""Events of orders that an effect has neither handled nor dead-lettered, in PostgreSQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings

from kafka_bridge.consuming.dead_letters import RELAY
from kafka_bridge.outbox.published import is_published_sql
from kafka_bridge.registry import prefixed

from .messages import ORDER_CANCELLED, ORDER_COMPLETED


class TrackedEvent(NamedTuple):
    """An event type, the columns of ``orders_order`` with its id and time, and the effects that must handle it."""

    event_type: str
    event_id: str
    moment: str
    effects: tuple[str, ...]


TRACKED_EVENTS = (
    TrackedEvent(
        ORDER_COMPLETED, "completed_event_id", "paid_at", ("notification", "data-platform", "ranking", "monitoring")
    ),
    TrackedEvent(ORDER_CANCELLED, "cancelled_event_id", "cancelled_at", ("data-platform", "ranking", "monitoring")),
)


def missed_sql(event: TrackedEvent, columns: str) -> str:
    """Return a query of ``columns`` of orders (``o``) whose ``event`` is published and missing at an effect.

    Its values are those of ``missed_values``, and ``until``: only earlier events are looked at.
    """
    return f"""
        SELECT {columns}
        FROM orders_order o LEFT JOIN kafka_bridge_outboxmessage message ON message.event_id = o.{event.event_id}
        WHERE o.{event.event_id} IS NOT NULL AND o.{event.moment} < %(until)s
          AND o.{event.moment} > greatest(%(after)s, statement_timestamp() - %(kept_hours)s * interval '1 hour')
          AND (message.id IS NULL OR {is_published_sql("message")})
          AND NOT EXISTS (
              SELECT FROM kafka_bridge_processedevent p
              WHERE p.consumer_group = %(effect)s AND p.event_id = o.{event.event_id}
          )
          AND NOT EXISTS (
              SELECT FROM kafka_bridge_deadletter d
              WHERE d.consumer_group IN (%(effect)s, %(relay)s) AND d.event_id = o.{event.event_id}
          )
    """


def missed_values(event: TrackedEvent, effect: str, *, after: datetime | None) -> dict[str, Any]:
    """Return the values of ``missed_sql``. Only events later than ``after`` are looked at; None: all with an inbox."""
    return {"effect": effect, "relay": RELAY, "after": after, "kept_hours": _kept_hours(event)}


def read_by(event: TrackedEvent, effect: str) -> tuple[str, list[str]]:
    """Return the group id by which ``effect`` reads, and the topic of ``event``, both with the prefix."""
    group_id = f"{settings.KAFKA_TOPIC_PREFIX}{settings.KAFKA_GROUPS[effect]}"
    return group_id, [prefixed(settings.KAFKA_ROUTES[event.event_type].topic)]


def _kept_hours(event: TrackedEvent) -> int:
    """Return how long inbox rows and dead letters of ``event`` are kept at least: housekeeping deletes older ones."""
    hours = 24 * int(settings.DEAD_LETTER_RETENTION_DAYS)
    is_kept_for_ever = settings.KAFKA_ROUTES[event.event_type].retention_ms < 0
    return hours if is_kept_for_ever else min(hours, int(settings.INBOX_RETENTION_HOURS))
