"""Refund an order once: the request is committed before the provider is called.

If the process dies in between, the sweep repeats the call under the same key and finishes the cancellation.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import Unavailable
from common.postgres.clock import database_time
from common.processes import slots
from common.processes.lifecycle import first_line
from coupons.redemption import coupon_refund

from ..clients.payment import LONGEST_CALL_SECONDS, PaymentDeclined, payment_gateway
from ..errors import InvalidState
from ..models import Order
from .publishing import order_publish_cancelled

logger = logging.getLogger(__name__)

_IN_DOUBT_AFTER = timedelta(seconds=LONGEST_CALL_SECONDS + 10)


class Refund(NamedTuple):
    """A requested refund, in won."""

    order_id: int
    amount: int


def refund_request(order: Order) -> Refund:
    """Record that the order is to be refunded. The caller holds the order's lock."""
    order.refund_requested_at = database_time()
    order.save(update_fields=["refund_requested_at"])
    return Refund(order.id, order.pay_amount)


def refunds_in_doubt() -> QuerySet[Order]:
    """Select the orders with an open refund whose last call can no longer be in progress."""
    return Order.objects.filter(refund_requested_at__lte=Now() - _IN_DOUBT_AFTER)


def refund_settle(refund: Refund, *, traceparent: str = "") -> Order:
    """Refund the money and cancel the order if it was PAID; returns the order. Must not be called inside a transaction.

    Raises InvalidState if the provider declines, and Unavailable while it does not answer.
    """
    if transaction.get_connection().in_atomic_block:
        raise RuntimeError("the provider is never called inside a transaction")
    try:
        if refund.amount:
            with slots.set_aside():
                payment_gateway().refund(
                    order_id=refund.order_id, amount=refund.amount, idempotency_key=f"{refund.order_id}-refund"
                )
    except PaymentDeclined as error:
        # Not for an order that ended unpaid: its money must go back, so its refund stays requested for the sweep.
        Order.objects.filter(id=refund.order_id, status=Order.Status.PAID).update(refund_requested_at=None)
        logger.error("refund of order %d declined: %s", refund.order_id, first_line(error))
        raise InvalidState(f"The refund was declined: {error}") from error
    except Exception as error:
        logger.warning("refund of order %d in doubt: %s", refund.order_id, first_line(error))
        raise Unavailable(
            "The payment provider does not answer. The refund follows as soon as it does.", retry_after=1
        ) from error
    with transaction.atomic():
        order = Order.objects.lock(refund.order_id)
        order.refund_requested_at = None
        order.save(update_fields=["refund_requested_at"])
        if order.status == Order.Status.PAID:
            _cancel(order, traceparent)
    return order


def _cancel(order: Order, traceparent: str) -> None:
    """Update the order, its coupon and the outbox in the caller's transaction."""
    order.status = Order.Status.CANCELLED
    order.cancelled_at = database_time()
    if order.user_coupon_id is not None:
        coupon_refund(user_coupon_id=order.user_coupon_id, order_id=order.id)
    order.cancelled_event_id = order_publish_cancelled(order, traceparent=traceparent)
    order.save(update_fields=["status", "cancelled_at", "cancelled_event_id"])
