"""The sweep: expire unpaid orders, and settle payments and refunds that a dead process left in doubt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import DomainError, Unavailable
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_transient
from coupons.redemption import coupon_release

from ..models import Order
from .paying import payment_begin, payment_settle, payments_in_doubt
from .refunding import refund_request, refund_settle, refunds_in_doubt

logger = logging.getLogger(__name__)

# A call to the provider that repeats a payment or a refund in doubt.
Attempt = TypeVar("Attempt")

_BATCH = 200
# Bounds the settling, so that a slow provider does not delay the next round of expiries.
_LONGEST_SECONDS = 30.0
# That many consecutive calls without an answer mean that the provider is down.
_MAX_UNAVAILABLE = 3


def expire_unpaid(stop: StopFlag) -> int:
    """Expire the unpaid orders past ``expires_at``, in batches; returns how many expired."""
    expired = 0
    # Each batch starts after the last order of the one before: an order that cannot expire is not tried again.
    after: Order | None = None
    while not stop:
        with transaction.atomic():
            orders = _overdue(after)
            expired += sum(_expire(order) for order in orders)
        if not orders:
            break
        after = orders[-1]
    return expired


def settle_payments(stop: StopFlag) -> int:
    """Repeat the payments in doubt, oldest first; returns how many are settled."""
    return _settle_each("payment", payments_in_doubt().order_by("paying_until"), payment_begin, payment_settle, stop)


def settle_refunds(stop: StopFlag) -> int:
    """Repeat the refunds in doubt, oldest first; returns how many are settled."""
    return _settle_each(
        "refund", refunds_in_doubt().order_by("refund_requested_at"), refund_request, refund_settle, stop
    )


def _overdue(after: Order | None) -> list[Order]:
    orders = Order.objects.filter(status=Order.Status.PENDING, expires_at__lte=Now()).order_by("expires_at", "id")
    if after is not None:
        orders = orders.filter(expires_at__gte=after.expires_at).exclude(expires_at=after.expires_at, id__lte=after.id)
    # Skip orders that another transaction is paying or cancelling.
    return list(orders.select_for_update(no_key=True, skip_locked=True)[:_BATCH])


def _expire(order: Order) -> bool:
    try:
        with transaction.atomic():
            if order.user_coupon_id is not None:
                coupon_release(user_coupon_id=order.user_coupon_id, order_id=order.id, cause="order expired")
            order.status = Order.Status.EXPIRED
            order.save(update_fields=["status"])
    except Exception as error:
        _log_and_skip(order.id, "cannot expire", error)
        return False
    return True


def _settle_each(
    kind: str,
    in_doubt: QuerySet[Order],
    begin: Callable[[Order], Attempt],
    settle: Callable[[Attempt], object],
    stop: StopFlag,
) -> int:
    settled = unavailable = 0
    until = time.monotonic() + _LONGEST_SECONDS
    for order_id in list(in_doubt.values_list("id", flat=True)):
        if stop:
            break
        try:
            with transaction.atomic():
                # Skip an order that another process has settled, or whose row it has locked.
                order = in_doubt.filter(id=order_id).select_for_update(no_key=True, skip_locked=True).first()
                attempt = None if order is None else begin(order)
            if attempt is not None:
                settle(attempt)
                settled += 1
            unavailable = 0
        except Unavailable:
            # The attempt made this order the most recent one; a later sweep repeats it.
            unavailable += 1
        except DomainError as error:
            logger.warning("%s of order %d: %s", kind, order_id, first_line(error))
            settled += 1
            unavailable = 0
        except Exception as error:
            _log_and_skip(order_id, f"has a {kind} whose outcome cannot be stored", error)
        if unavailable == _MAX_UNAVAILABLE or time.monotonic() > until:
            break
    return settled


def _log_and_skip(order_id: int, trouble: str, error: Exception) -> None:
    """Log the order for the operator and continue with the next one; a database outage is raised."""
    if is_transient(error):
        raise error
    logger.error("order %d %s: %s", order_id, trouble, first_line(error), exc_info=error)
