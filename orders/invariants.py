"""What must never happen to orders, counted in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from django.conf import settings

from coupons.invariants import deadline, query_lines
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.dead_letters import RELAY
from kafka_bridge.outbox.writing import anything_unpublished
from kafka_bridge.registry import prefixed

from .messages import ORDER_CANCELLED, ORDER_COMPLETED


class _Told(NamedTuple):
    """An event of orders, the columns of an order that say when it was born, and the effects it must reach."""

    event_type: str
    event_id: str
    moment: str
    groups: tuple[str, ...]


_TOLD = (
    _Told(ORDER_COMPLETED, "completed_event_id", "paid_at", ("notification", "data-platform", "ranking", "monitoring")),
    _Told(ORDER_CANCELLED, "cancelled_event_id", "cancelled_at", ("data-platform", "ranking", "monitoring")),
)

_EVENTS = """
    SELECT id, event_id, event_type, convert_from(payload, 'UTF8')::jsonb ->> 'orderId' AS order_id
    FROM kafka_bridge_outboxmessage WHERE event_type IN (%(completed)s, %(cancelled)s) AND headers IS NULL
"""
_LATEST_STEP = """
    SELECT DISTINCT ON (user_coupon_id) user_coupon_id, order_id, step FROM coupons_couponledgerentry
    ORDER BY user_coupon_id, id DESC
"""
# Each finds violations as lines of text; the letters are those of ``coupons.invariants``.
_QUERIES = {
    "I3 an order that lives has its coupon": f"""
        SELECT format('order %s is %s, its coupon %s is %s', o.id, o.status, o.user_coupon_id,
                      coalesce(u.status || coalesce(' by order ' || latest.order_id, ''), 'not its user''s'))
        FROM orders_order o
        LEFT JOIN coupons_usercoupon u ON u.id = o.user_coupon_id AND u.user_id = o.user_id
        LEFT JOIN ({_LATEST_STEP}) AS latest ON latest.user_coupon_id = o.user_coupon_id
        WHERE o.user_coupon_id IS NOT NULL AND o.status IN ('PENDING', 'PAYING', 'PAID')
          AND (u.status, latest.order_id) IS DISTINCT FROM
              (CASE o.status WHEN 'PAID' THEN 'USED' ELSE 'HELD' END, o.id)
    """,
    "I3 an order that has ended has no coupon": f"""
        SELECT format('coupon %s is %s by order %s, which is %s', latest.user_coupon_id, latest.step, latest.order_id,
                      coalesce(o.status, 'not there'))
        FROM ({_LATEST_STEP}) AS latest LEFT JOIN orders_order o ON o.id = latest.order_id
        WHERE latest.step IN ('HELD', 'USED') AND coalesce(o.status, '') NOT IN ('PENDING', 'PAYING', 'PAID')
    """,
    "I4 a cancellation is told after the payment": f"""
        SELECT format('order %s: told to be cancelled before it was told to be paid', cancelled.order_id)
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
    "I7 nothing is told twice of an order": f"""
        SELECT format('order %s: %s told %s times', order_id, event_type, count(*))
        FROM ({_EVENTS}) AS event GROUP BY order_id, event_type HAVING count(*) > 1
    """,
}


def violations() -> Iterator[tuple[str, list[str]]]:
    """Each invariant's name with a line per violation, see ``coupons.invariants.violations``."""
    names = {"completed": ORDER_COMPLETED, "cancelled": ORDER_CANCELLED}
    for name, query in _QUERIES.items():
        # format() of PostgreSQL and the driver both know "%s": only the named placeholders are the driver's.
        yield name, query_lines(query.replace("%s", "%%s"), names)
    yield "I5 I7 every paid order reaches every effect", missed_effects()


def missed_effects(lag: Callable[[str, list[str]], int] = group_lag) -> list[str]:
    """Events older than ``REQUEST_DEADLINE_SECONDS`` that a group has neither handled nor given up, though it is idle.

    ``lag`` tells how many messages of topics a group has not committed; by default Kafka is asked. Raises
    ServiceUnavailable if it is away.
    """
    return [line for told in _TOLD for group in told.groups for line in _missed(told, group, lag)]


def _missed(told: _Told, group: str, lag: Callable[[str, list[str]], int]) -> list[str]:
    query = f"""
        SELECT format('order %%s: event %%s never reached %%s', o.id, o.{told.event_id}, %(group)s::text)
        FROM orders_order o
        WHERE o.{told.event_id} IS NOT NULL AND o.{told.moment} < %(deadline)s
          AND NOT EXISTS (
              SELECT 1 FROM kafka_bridge_processedevent p
              WHERE p.consumer_group = %(group)s AND p.event_id = o.{told.event_id}
          )
          AND NOT EXISTS (
              SELECT 1 FROM kafka_bridge_deadletter d
              WHERE d.consumer_group IN (%(group)s, %(relay)s) AND d.event_id = o.{told.event_id}
          )
        ORDER BY o.id
    """
    values = {"group": group, "relay": RELAY, "deadline": deadline()}
    if not query_lines(query, values) or anything_unpublished():
        return []
    group_id = f"{settings.KAFKA_TOPIC_PREFIX}{settings.KAFKA_GROUPS[group]}"
    if lag(group_id, [prefixed(settings.KAFKA_ROUTES[told.event_type].topic)]) != 0:
        return []
    # Read again: what was on its way before the lag was known to be none has arrived.
    return query_lines(query, values)
