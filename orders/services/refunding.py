"""Giving money back, once: the wish is committed before the provider is asked.

If the process dies in between, the sweep asks again under the same key and finishes what the refund was for.
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

from .. import policy
from ..clients.payment import LONGEST_CALL_SECONDS, PaymentDeclined, payment_gateway
from ..errors import InvalidState
from ..models import Order
from .locking import order_lock
from .publish import order_publish_cancelled

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(seconds=LONGEST_CALL_SECONDS + 10)


class Refund(NamedTuple):
    """Money to be given back, in won."""

    order_id: int
    amount: int


def refund_request(order: Order) -> Refund:
    """Note that the order's money is to be given back. The caller holds the order's lock."""
    order.refund_requested_at = database_time()
    order.save(update_fields=["refund_requested_at"])
    return Refund(order.id, order.pay_amount)


def refunds_in_doubt() -> QuerySet[Order]:
    """Orders whose money is to be given back and was not asked for just now: that call may be on the line."""
    return Order.objects.filter(refund_requested_at__lte=Now() - _PATIENCE)


def refund_take_over(order_id: int) -> Refund | None:
    """Ask again for a refund in doubt; None if it is not, or if somebody has the order right now."""
    with transaction.atomic():
        order = refunds_in_doubt().filter(id=order_id).select_for_update(no_key=True, skip_locked=True).first()
        return None if order is None else refund_request(order)


def refund_settle(refund: Refund, *, traceparent: str = "") -> Order:
    """Give the money back; an order that was PAID is cancelled then. Returns the order. Not inside a transaction.

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
        # Of an order that ended unpaid the money is owed all the same: the sweep goes on asking.
        Order.objects.filter(id=refund.order_id, status=policy.PAID).update(refund_requested_at=None)
        logger.error("refund of order %d declined: %s", refund.order_id, first_line(error))
        raise InvalidState(f"The refund was declined: {error}") from error
    except Exception as error:
        logger.warning("refund of order %d in doubt: %s", refund.order_id, first_line(error))
        raise Unavailable(
            "The payment provider does not answer. The money is given back as soon as it does.", retry_after=1
        ) from error
    with transaction.atomic():
        order = order_lock(refund.order_id)
        order.refund_requested_at = None
        order.save(update_fields=["refund_requested_at"])
        if order.status == policy.PAID:
            _cancel(order, traceparent)
    return order


def _cancel(order: Order, traceparent: str) -> None:
    """The order, what becomes of its coupon and the row of the outbox, in the caller's one transaction."""
    order.status = policy.CANCELLED
    order.cancelled_at = database_time()
    if order.user_coupon_id is not None:
        coupon_refund(user_coupon_id=order.user_coupon_id, order_id=order.id)
    order.cancelled_event_id = order_publish_cancelled(order, traceparent=traceparent)
    order.save(update_fields=["status", "cancelled_at", "cancelled_event_id"])
