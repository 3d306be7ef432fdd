"""Publish order events through the outbox, in the transaction of the change."""

from __future__ import annotations

from uuid import UUID

from kafka_bridge.outbox.writing import new_event_id, publish

from ..events import OrderCancelled, OrderCompleted, OrderEvent
from ..messages import message_of
from ..models import Order


def order_publish_completed(order: Order, *, traceparent: str = "") -> UUID:
    """Write ``OrderCompleted`` to the outbox, within the caller's transaction; returns the event's id."""
    assert order.paid_at is not None
    event = OrderCompleted(
        order_id=order.id,
        user_id=order.user_id,
        items=order.items(),
        total_amount=order.total_amount,
        discount_amount=order.discount_amount,
        pay_amount=order.pay_amount,
        user_coupon_id=order.user_coupon_id,
        paid_at=order.paid_at,
    )
    return _publish(event, traceparent)


def order_publish_cancelled(order: Order, *, traceparent: str = "") -> UUID:
    """Write ``OrderCancelled`` to the outbox, within the caller's transaction; returns the event's id."""
    assert order.paid_at is not None
    assert order.cancelled_at is not None
    event = OrderCancelled(
        order_id=order.id,
        user_id=order.user_id,
        items=order.items(),
        paid_at=order.paid_at,
        cancelled_at=order.cancelled_at,
    )
    return _publish(event, traceparent)


def _publish(event: OrderEvent, traceparent: str) -> UUID:
    event_id = new_event_id()
    publish([message_of(event, event_id=event_id, traceparent=traceparent)])
    return event_id
