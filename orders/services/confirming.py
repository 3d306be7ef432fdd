"""Confirm a paid order: the subscriber of ``PaymentCompleted``."""

from __future__ import annotations

from coupons.redemption import coupon_use

from ..events import PaymentCompleted
from ..models import Order
from ..signals import payment_completed
from .publishing import order_publish_completed


def subscribe() -> None:
    """Confirm the order of every completed payment; called once, when the app is ready."""
    payment_completed.connect(order_confirm, dispatch_uid="order_confirm")


def order_confirm(*, event: PaymentCompleted, order: Order, **_signal: object) -> None:
    """Make the order PAID and its coupon USED, and raise OrderCompleted, in the caller's transaction.

    The caller holds the order's lock.
    """
    order.status = Order.Status.PAID
    order.paid_at = event.paid_at
    order.paying_until = None
    if order.user_coupon_id is not None:
        coupon_use(user_coupon_id=order.user_coupon_id, order_id=order.id)
    order.completed_event_id = order_publish_completed(order, traceparent=event.traceparent)
    order.save(update_fields=["status", "paid_at", "paying_until", "completed_event_id"])
