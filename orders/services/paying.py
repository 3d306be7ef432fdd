"""Paying an order: never paid twice, never paid and not told.

PENDING -> PAYING is committed before the provider is asked, with the order id as the idempotency key. While PAYING
nothing else happens to the order, whatever becomes of this process: once ``paying_until`` is past, the next who comes
(the user, or the sweep) asks the provider again under the same key and learns how it ended.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import Unavailable
from common.postgres.clock import database_time
from common.processes import slots
from common.processes.lifecycle import first_line
from coupons.redemption import coupon_use

from .. import policy
from ..clients.payment import LONGEST_CALL_SECONDS, PaymentDeclined, payment_gateway
from ..errors import InProgress, InvalidState
from ..models import Order
from ..schemas import PaidOrder
from .idempotency import claim_key, discard_keys, store_response
from .locking import order_lock
from .publish import order_publish_completed
from .refunding import refund_request, refund_settle

logger = logging.getLogger(__name__)

_OPERATION = "pay"
_LEASE = timedelta(seconds=LONGEST_CALL_SECONDS + 10)


class Attempt(NamedTuple):
    """A call to the provider that is this process's alone until ``until``, by the database's clock."""

    order_id: int
    user_id: int
    amount: int
    until: datetime


def order_pay(*, order_id: int, user_id: int, idempotency_key: str | None = None, traceparent: str = "") -> PaidOrder:
    """Pay an order; of an order that is paid, tell the same again.

    Raises NotFound, InvalidState (cancelled, expired, or the payment was declined), InProgress while somebody else pays
    it, Unavailable while the provider does not answer, and for an idempotency key what ``claim_key`` raises.
    """
    asked = _asked(order_id)
    with transaction.atomic():
        order = order_lock(order_id, user_id=user_id)
        if idempotency_key is not None:
            earlier = claim_key(user_id=user_id, operation=_OPERATION, key=idempotency_key, asked=asked)
            if earlier is not None:
                return msgspec.json.decode(earlier, type=PaidOrder)
        if order.status == policy.PAID:
            answer = _answer(order)
            store_response(user_id=user_id, operation=_OPERATION, asked=asked, response=msgspec.json.encode(answer))
            return answer
        attempt = _begin(order)
    return payment_settle(attempt, traceparent=traceparent)


def payments_in_doubt() -> QuerySet[Order]:
    """Orders whose payment nobody waits for any more: how it ended only the provider knows."""
    return Order.objects.filter(status=policy.PAYING, paying_until__lte=Now())


def payment_take_over(order_id: int) -> Attempt | None:
    """Begin another attempt at a payment in doubt; None if it is not, or if somebody has the order right now."""
    with transaction.atomic():
        order = payments_in_doubt().filter(id=order_id).select_for_update(no_key=True, skip_locked=True).first()
        return None if order is None else _begin(order)


def payment_settle(attempt: Attempt, *, traceparent: str = "") -> PaidOrder:
    """Ask the provider, and make the order what it says. Not inside a transaction; raises as ``order_pay`` does."""
    if transaction.get_connection().in_atomic_block:
        raise RuntimeError("the provider is never called inside a transaction")
    try:
        if attempt.amount:
            with slots.set_aside():
                payment_gateway().charge(
                    order_id=attempt.order_id, amount=attempt.amount, idempotency_key=str(attempt.order_id)
                )
    except PaymentDeclined as error:
        _reopen(attempt)
        raise InvalidState(f"The payment was declined: {error}") from error
    except Exception as error:
        logger.warning("payment of order %d in doubt: %s", attempt.order_id, first_line(error))
        _let_go(attempt)
        raise Unavailable(
            "The payment provider does not answer. Ask again: the order will not be paid twice.", retry_after=1
        ) from error
    return _complete(attempt, traceparent)


def _begin(order: Order) -> Attempt:
    """PENDING, or PAYING that is in doubt, becomes PAYING by this attempt. The caller holds the order's lock."""
    now = database_time()
    if order.status == policy.PAYING and _on_the_line(order, now):
        raise InProgress("The order is being paid: ask again in a moment.", retry_after=1)
    if order.status == policy.PENDING and order.expires_at <= now:
        raise InvalidState("The time to pay the order is over.")
    if order.status not in (policy.PENDING, policy.PAYING):
        raise InvalidState(f"The order is {order.status}.")
    order.status = policy.PAYING
    order.paying_until = now + _LEASE
    order.save(update_fields=["status", "paying_until"])
    return Attempt(order.id, order.user_id, order.pay_amount, order.paying_until)


def _on_the_line(order: Order, now: datetime) -> bool:
    return order.paying_until is not None and order.paying_until > now


def _complete(attempt: Attempt, traceparent: str) -> PaidOrder:
    with transaction.atomic():
        order = order_lock(attempt.order_id)
        if order.status not in (policy.CANCELLED, policy.EXPIRED):
            return _finish(order, traceparent)
        # This attempt hung past its lease, another was told no, and the order ended without its money.
        refund = refund_request(order)
    refund_settle(refund)
    raise InvalidState(f"The payment came when the order was {order.status}: the money is given back.")


def _finish(order: Order, traceparent: str) -> PaidOrder:
    if order.status != policy.PAID:
        _mark_paid(order, traceparent)
    answer = _answer(order)
    store_response(
        user_id=order.user_id, operation=_OPERATION, asked=_asked(order.id), response=msgspec.json.encode(answer)
    )
    return answer


def _mark_paid(order: Order, traceparent: str) -> None:
    """The order, the coupon it used and the row of the outbox, in the caller's one transaction."""
    order.status = policy.PAID
    order.paid_at = database_time()
    order.paying_until = None
    if order.user_coupon_id is not None:
        coupon_use(user_coupon_id=order.user_coupon_id, order_id=order.id)
    order.completed_event_id = order_publish_completed(order, traceparent=traceparent)
    order.save(update_fields=["status", "paid_at", "paying_until", "completed_event_id"])


def _reopen(attempt: Attempt) -> None:
    """The provider said no: the order waits for its payment again, unless somebody else has asked meanwhile."""
    with transaction.atomic():
        mine = Order.objects.filter(id=attempt.order_id, status=policy.PAYING, paying_until=attempt.until)
        if mine.update(status=policy.PENDING, paying_until=None):
            discard_keys(user_id=attempt.user_id, operation=_OPERATION, asked=_asked(attempt.order_id))


def _let_go(attempt: Attempt) -> None:
    """In doubt: whoever comes next may ask the provider again at once."""
    Order.objects.filter(id=attempt.order_id, status=policy.PAYING, paying_until=attempt.until).update(
        paying_until=database_time()
    )


def _asked(order_id: int) -> bytes:
    return str(order_id).encode()


def _answer(order: Order) -> PaidOrder:
    assert order.paid_at is not None
    return PaidOrder(order_id=order.id, status="PAID", paid_at=order.paid_at)
