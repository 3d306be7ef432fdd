"""Invariants of orders, checked in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from coupons.invariants import deadline, lines_at_rest, named_lines
from kafka_bridge.client import group_lag

from .messages import ORDER_CANCELLED, ORDER_COMPLETED
from .missed_effects import TRACKED_EVENTS, TrackedEvent, missed_sql, missed_values, read_by

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
    return [line for event in TRACKED_EVENTS for effect in event.effects for line in _missed(event, effect, lag)]


def _missed(event: TrackedEvent, effect: str, lag: Callable[[str, list[str]], int]) -> list[str]:
    line = f"format('order %%s: event %%s never reached %%s', o.id, o.{event.event_id}, %(effect)s::text)"
    query = f"{missed_sql(event, line)} ORDER BY o.id"
    values = {**missed_values(event, effect, after=None), "until": deadline()}
    return lines_at_rest(query, values, partial(lag, *read_by(event, effect)))
