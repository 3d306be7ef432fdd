"""Invariants of orders, checked in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from django.conf import settings

from coupons.invariants import deadline, lines_at_rest, named_lines
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.dead_letters import RELAY
from kafka_bridge.registry import prefixed

from .messages import ORDER_CANCELLED, ORDER_COMPLETED


class _TrackedEvent(NamedTuple):
    """An event type, the columns of ``orders_order`` with its id and time, and the groups that must handle it."""

    event_type: str
    event_id: str
    moment: str
    groups: tuple[str, ...]


_TRACKED_EVENTS = (
    _TrackedEvent(
        ORDER_COMPLETED, "completed_event_id", "paid_at", ("notification", "data-platform", "ranking", "monitoring")
    ),
    _TrackedEvent(ORDER_CANCELLED, "cancelled_event_id", "cancelled_at", ("data-platform", "ranking", "monitoring")),
)

_EVENTS = """
    SELECT id, event_id, event_type, convert_from(payload, 'UTF8')::jsonb ->> 'orderId' AS order_id
    FROM kafka_bridge_outboxmessage WHERE event_type IN (%(completed)s, %(cancelled)s) AND headers IS NULL
"""
_LATEST_STEP = """
    SELECT DISTINCT ON (user_coupon_id) user_coupon_id, order_id, step FROM coupons_couponledgerentry
    ORDER BY user_coupon_id, id DESC
"""
# Each query returns one line of text per violation; the numbers (I3) are those of ``coupons.invariants``.
_QUERIES = {
    "I3 a pending, paying or paid order has its coupon": f"""
        SELECT format('order %s is %s, its coupon %s is %s', o.id, o.status, o.user_coupon_id,
                      coalesce(u.status || coalesce(' by order ' || latest.order_id, ''), 'not its user''s'))
        FROM orders_order o
        LEFT JOIN coupons_usercoupon u ON u.id = o.user_coupon_id AND u.user_id = o.user_id
        LEFT JOIN ({_LATEST_STEP}) AS latest ON latest.user_coupon_id = o.user_coupon_id
        WHERE o.user_coupon_id IS NOT NULL AND o.status IN ('PENDING', 'PAYING', 'PAID')
          AND (u.status, latest.order_id) IS DISTINCT FROM
              (CASE o.status WHEN 'PAID' THEN 'USED' ELSE 'HELD' END, o.id)
    """,
    "I3 a cancelled or expired order has no coupon": f"""
        SELECT format('coupon %s is %s by order %s, which is %s', latest.user_coupon_id, latest.step, latest.order_id,
                      coalesce(o.status, 'not there'))
        FROM ({_LATEST_STEP}) AS latest LEFT JOIN orders_order o ON o.id = latest.order_id
        WHERE latest.step IN ('HELD', 'USED') AND coalesce(o.status, '') NOT IN ('PENDING', 'PAYING', 'PAID')
    """,
    "I4 the cancellation is published after the payment": f"""
        SELECT format('order %s: its cancellation was published before its payment', cancelled.order_id)
        FROM ({_EVENTS}) AS cancelled JOIN ({_EVENTS}) AS completed
          ON cancelled.event_type = %(cancelled)s AND completed.event_type = %(completed)s
         AND completed.order_id = cancelled.order_id AND completed.id > cancelled.id
    """,
    "I7 every paid order has an event": """
        SELECT format('order %s is %s, paid %s, cancelled %s', id, status,
                      coalesce(completed_event_id::text, 'without an event'),
                      coalesce(cancelled_event_id::text, 'without an event'))
        FROM orders_order
        WHERE (paid_at IS NOT NULL) <> (completed_event_id IS NOT NULL)
           OR (status = 'PAID' AND paid_at IS NULL)
           OR (status = 'CANCELLED' AND paid_at IS NOT NULL) <> (cancelled_event_id IS NOT NULL)
    """,
    "I7 no event of an order is published twice": f"""
        SELECT format('order %s: %s published %s times', order_id, event_type, count(*))
        FROM ({_EVENTS}) AS event GROUP BY order_id, event_type HAVING count(*) > 1
    """,
}


def violations() -> Iterator[tuple[str, list[str]]]:
    """Yield each invariant's name with one line per violation, see ``coupons.invariants.violations``."""
    yield from named_lines(_QUERIES, {"completed": ORDER_COMPLETED, "cancelled": ORDER_CANCELLED})
    yield "I5 I7 every paid order reaches every effect", missed_effects()


def missed_effects(lag: Callable[[str, list[str]], int] = group_lag) -> list[str]:
    """List events older than ``REQUEST_DEADLINE_SECONDS`` that an idle group has neither handled nor dead-lettered.

    ``lag(group_id, topics)`` returns how many messages the group has not committed; by default it asks Kafka. Raises
    ServiceUnavailable if Kafka does not answer.
    """
    return [line for event in _TRACKED_EVENTS for group in event.groups for line in _missed(event, group, lag)]


def _missed(event: _TrackedEvent, group: str, lag: Callable[[str, list[str]], int]) -> list[str]:
    query = f"""
        SELECT format('order %%s: event %%s never reached %%s', o.id, o.{event.event_id}, %(group)s::text)
        FROM orders_order o
        WHERE o.{event.event_id} IS NOT NULL AND o.{event.moment} < %(deadline)s
          AND o.{event.moment} > statement_timestamp() - %(kept_hours)s * interval '1 hour'
          AND NOT EXISTS (
              SELECT 1 FROM kafka_bridge_processedevent p
              WHERE p.consumer_group = %(group)s AND p.event_id = o.{event.event_id}
          )
          AND NOT EXISTS (
              SELECT 1 FROM kafka_bridge_deadletter d
              WHERE d.consumer_group IN (%(group)s, %(relay)s) AND d.event_id = o.{event.event_id}
          )
        ORDER BY o.id
    """
    values = {"group": group, "relay": RELAY, "deadline": deadline(), "kept_hours": _kept_hours(event)}
    group_id = f"{settings.KAFKA_TOPIC_PREFIX}{settings.KAFKA_GROUPS[group]}"
    topic = prefixed(settings.KAFKA_ROUTES[event.event_type].topic)
    return lines_at_rest(query, values, partial(lag, group_id, [topic]))


def _kept_hours(event: _TrackedEvent) -> int:
    """Return how long inbox rows and dead letters of ``event`` are kept at least: housekeeping deletes older ones."""
    hours = 24 * int(settings.DEAD_LETTER_RETENTION_DAYS)
    is_kept_for_ever = settings.KAFKA_ROUTES[event.event_type].retention_ms < 0
    return hours if is_kept_for_ever else min(hours, int(settings.INBOX_RETENTION_HOURS))
