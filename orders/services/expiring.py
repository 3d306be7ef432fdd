"""The sweep: what time alone does to orders, and what a dead process left in doubt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import DomainError, Unavailable
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_transient
from coupons.redemption import coupon_release

from .. import policy
from ..models import Order
from .paying import payment_settle, payment_take_over, payments_in_doubt
from .refunding import refund_settle, refund_take_over, refunds_in_doubt

logger = logging.getLogger(__name__)

_BATCH = 200
# What waits for time alone has its turn again after that, however slowly the provider answers.
_LONGEST_SECONDS = 30.0
# So many calls in a row without an answer are the provider's fault and not the orders'.
_MOST_DOUBTS = 3


def expire_unpaid(stop: StopFlag) -> int:
    """Expire the orders whose time to pay is over, in batches; returns how many have expired."""
    expired = 0
    # Each batch goes on behind the one before: what cannot expire does not come again.
    behind: Order | None = None
    while not stop:
        with transaction.atomic():
            orders = _unpaid_for_too_long(behind)
            expired += sum(_expire(order) for order in orders)
        if not orders:
            break
        behind = orders[-1]
    return expired


def settle_payments(stop: StopFlag) -> int:
    """Ask the provider again about payments in doubt, the oldest first; returns how many are settled."""
    return _settle_each("payment", payments_in_doubt().order_by("paying_until"), _settle_payment, stop)


def settle_refunds(stop: StopFlag) -> int:
    """Ask the provider again for refunds wanted a while ago, the oldest first; returns how many are settled."""
    return _settle_each("refund", refunds_in_doubt().order_by("refund_requested_at"), _settle_refund, stop)


def _unpaid_for_too_long(behind: Order | None) -> list[Order]:
    orders = Order.objects.filter(status=policy.PENDING, expires_at__lte=Now()).order_by("expires_at", "id")
    if behind is not None:
        orders = orders.filter(expires_at__gte=behind.expires_at).exclude(
            expires_at=behind.expires_at, id__lte=behind.id
        )
    # Somebody who is paying or cancelling one of them right now goes first.
    return list(orders.select_for_update(no_key=True, skip_locked=True)[:_BATCH])


def _expire(order: Order) -> bool:
    try:
        with transaction.atomic():
            if order.user_coupon_id is not None:
                coupon_release(user_coupon_id=order.user_coupon_id, order_id=order.id, cause="order expired")
            order.status = policy.EXPIRED
            order.save(update_fields=["status"])
    except Exception as error:
        _pass_over(order.id, "cannot expire", error)
        return False
    return True


def _settle_each(what: str, orders: QuerySet[Order], settle: Callable[[int], bool], stop: StopFlag) -> int:
    settled = doubts = 0
    until = time.monotonic() + _LONGEST_SECONDS
    for order_id in list(orders.values_list("id", flat=True)):
        if stop:
            break
        try:
            settled += settle(order_id)
            doubts = 0
        except Unavailable:
            # The order has gone to the end of the line, and a later sweep asks again.
            doubts += 1
        except DomainError as error:
            logger.warning("%s of order %d: %s", what, order_id, first_line(error))
            settled += 1
            doubts = 0
        except Exception as error:
            _pass_over(order_id, f"has a {what} that cannot be noted", error)
        if doubts == _MOST_DOUBTS or time.monotonic() > until:
            break
    return settled


def _pass_over(order_id: int, trouble: str, error: Exception) -> None:
    """One order that somebody has to look at does not keep the others waiting; a database that is away does."""
    if is_transient(error):
        raise error
    logger.error("order %d %s: %s", order_id, trouble, first_line(error), exc_info=error)


def _settle_payment(order_id: int) -> bool:
    attempt = payment_take_over(order_id)
    if attempt is None:
        return False
    payment_settle(attempt)
    return True


def _settle_refund(order_id: int) -> bool:
    refund = refund_take_over(order_id)
    if refund is None:
        return False
    refund_settle(refund)
    return True
