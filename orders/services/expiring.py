"""The sweep: what time alone does to orders, and what a dead process left in doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from coupons.errors import DomainError, Unavailable
from coupons.services.spending import LedgerBroken, coupon_release
from kafka_bridge.lifecycle import StopFlag, first_line

from .. import policy
from ..models import Order
from .paying import payment_settle, payment_take_over
from .refunding import refund_settle, refund_take_over

logger = logging.getLogger(__name__)

_BATCH = 200
# A refund that somebody has just asked for is on the line.
_REFUND_PATIENCE = timedelta(seconds=30)


def expire_unpaid() -> int:
    """Expire orders whose time to pay is over, a batch of them; returns how many have expired."""
    with transaction.atomic():
        # Somebody who is paying or cancelling one of them right now goes first.
        orders = list(
            Order.objects.filter(status=policy.PENDING, expires_at__lte=Now())
            .order_by("expires_at")
            .select_for_update(no_key=True, skip_locked=True)[:_BATCH]
        )
        return sum(_expire(order) for order in orders)


def settle_payments(stop: StopFlag) -> int:
    """Ask the provider again about payments in doubt, a batch of them; returns how many are settled."""
    in_doubt = Order.objects.filter(status=policy.PAYING, paying_until__lte=Now()).order_by("paying_until")
    return _settle_each("payment", in_doubt, _settle_payment, stop)


def settle_refunds(stop: StopFlag) -> int:
    """Ask the provider again for refunds wanted a while ago, a batch of them; returns how many are settled."""
    wanted = Order.objects.filter(refund_requested_at__lte=Now() - _REFUND_PATIENCE).order_by("refund_requested_at")
    return _settle_each("refund", wanted, _settle_refund, stop)


def _expire(order: Order) -> bool:
    try:
        with transaction.atomic():
            if order.user_coupon_id is not None:
                coupon_release(user_coupon_id=order.user_coupon_id, order_id=order.id, cause="order expired")
            order.status = policy.EXPIRED
            order.save(update_fields=["status"])
    except LedgerBroken as error:
        # One order that somebody has to look at does not keep the others waiting.
        logger.error("order %d cannot expire: %s", order.id, error)
        return False
    return True


def _settle_each(what: str, orders: QuerySet[Order], settle: Callable[[int], None], stop: StopFlag) -> int:
    settled = 0
    for order_id in list(orders.values_list("id", flat=True)[:_BATCH]):
        if stop:
            break
        try:
            settle(order_id)
        except Unavailable:
            # The order has gone to the end of the line, and the next sweep asks again.
            break
        except DomainError as error:
            logger.warning("%s of order %d: %s", what, order_id, first_line(error))
        except LedgerBroken as error:
            logger.error("%s of order %d cannot be noted: %s", what, order_id, error)
            continue
        settled += 1
    return settled


def _settle_payment(order_id: int) -> None:
    if attempt := payment_take_over(order_id):
        payment_settle(attempt)


def _settle_refund(order_id: int) -> None:
    if refund := refund_take_over(order_id):
        refund_settle(refund)
