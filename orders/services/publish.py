"""Telling other systems what happened to an order: the row of the outbox, in the transaction of the change."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict
from uuid import UUID

from kafka_bridge.outbox.writing import new_event_id, publish

from ..events import Item, OrderCancelled, OrderCompleted, OrderEvent
from ..messages import message_of
from ..models import Order
from .lines import items_of


class _Head(TypedDict):
    order_id: int
    user_id: int
    items: tuple[Item, ...]
    paid_at: datetime


def order_publish_completed(order: Order, *, traceparent: str = "") -> UUID:
    """Tell that the order was paid, within the caller's transaction; returns the event's id."""
    event = OrderCompleted(
        **_head(order),
        total_amount=order.total_amount,
        discount_amount=order.discount_amount,
        pay_amount=order.pay_amount,
        user_coupon_id=order.user_coupon_id,
    )
    return _publish(event, traceparent)


def order_publish_cancelled(order: Order, *, traceparent: str = "") -> UUID:
    """Tell that the paid order was cancelled; as ``order_publish_completed``."""
    assert order.cancelled_at is not None
    return _publish(OrderCancelled(**_head(order), cancelled_at=order.cancelled_at), traceparent)


def _head(order: Order) -> _Head:
    assert order.paid_at is not None
    return {"order_id": order.id, "user_id": order.user_id, "items": items_of(order), "paid_at": order.paid_at}


def _publish(event: OrderEvent, traceparent: str) -> UUID:
    event_id = new_event_id()
    publish([message_of(event, event_id=event_id, traceparent=traceparent)])
    return event_id
