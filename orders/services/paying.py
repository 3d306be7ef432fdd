"""Pay an order: never charged twice, and every payment publishes its event.

PENDING -> PAYING is committed before the provider is called, with the order id as the idempotency key. While PAYING no
other operation changes the order, even if this process dies: once ``paying_until`` is past, the next call of the user
or the sweep repeats the provider call under the same key and gets the outcome.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.api.errors import Unavailable
from common.postgres.clock import database_time
from common.processes import slots
from common.processes.lifecycle import first_line

from ..clients.payment import LONGEST_CALL_SECONDS, PaymentDeclined, payment_gateway
from ..errors import InProgress, InvalidState
from ..events import PaymentCompleted
from ..models import Order
from ..schemas import PaidOrder
from ..signals import payment_completed
from .idempotency import claim_key, discard_keys, store_response
from .refunding import refund_request, refund_settle

logger = logging.getLogger(__name__)

_OPERATION = "pay"
_LEASE = timedelta(seconds=LONGEST_CALL_SECONDS + 10)


class Attempt(NamedTuple):
    """A call to the provider, leased by this process until ``until`` (database clock). ``amount`` in won."""

    order_id: int
    user_id: int
    amount: int
    until: datetime


def order_pay(*, order_id: int, user_id: int, idempotency_key: str | None = None, traceparent: str = "") -> PaidOrder:
    """Pay an order; a paid order gets the same response again.

    Raises NotFound, InvalidState (cancelled, expired, or the payment was declined), InProgress while another call pays
    it, Unavailable while the provider does not answer, and with an idempotency key the errors of ``claim_key``.
    """
    with transaction.atomic():
        order = Order.objects.lock(order_id, user_id=user_id)
        if idempotency_key is not None:
            stored = claim_key(
                PaidOrder,
                user_id=user_id,
                operation=_OPERATION,
                key=idempotency_key,
                parameters=_parameters(order_id),
            )
            if stored is not None:
                return stored
        if order.status == Order.Status.PAID:
            return _store_response(order)
        attempt = payment_begin(order)
    return payment_settle(attempt, traceparent=traceparent)


def payments_in_doubt() -> QuerySet[Order]:
    """Select the orders whose payment lease has expired: only the provider knows the outcome."""
    return Order.objects.filter(status=Order.Status.PAYING, paying_until__lte=Now())


def payment_begin(order: Order) -> Attempt:
    """Move a PENDING order, or a payment in doubt, to PAYING by this attempt. The caller holds the order's lock.

    Raises InProgress and InvalidState as ``order_pay``.
    """
    now = database_time()
    if order.status == Order.Status.PAYING and _is_leased(order, now):
        raise InProgress("The order is being paid: try again in a moment.", retry_after=1)
    if order.status == Order.Status.PENDING and order.expires_at <= now:
        raise InvalidState("The time to pay the order is over.")
    if order.status not in (Order.Status.PENDING, Order.Status.PAYING):
        raise InvalidState(f"The order is {order.status}.")
    order.status = Order.Status.PAYING
    order.paying_until = now + _LEASE
    order.save(update_fields=["status", "paying_until"])
    return Attempt(order.id, order.user_id, order.pay_amount, order.paying_until)


def payment_settle(attempt: Attempt, *, traceparent: str = "") -> PaidOrder:
    """Charge the payment and store the outcome. Must not be called inside a transaction; raises as ``order_pay``."""
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
        _end_lease(attempt)
        raise Unavailable(
            "The payment provider does not answer. Try again: the order will not be paid twice.", retry_after=1
        ) from error
    return _complete(attempt, traceparent)


def _is_leased(order: Order, now: datetime) -> bool:
    return order.paying_until is not None and order.paying_until > now


def _complete(attempt: Attempt, traceparent: str) -> PaidOrder:
    with transaction.atomic():
        order = Order.objects.lock(attempt.order_id)
        if order.status not in (Order.Status.CANCELLED, Order.Status.EXPIRED):
            if order.status != Order.Status.PAID:
                _raise_completed(order, traceparent)
            return _store_response(order)
        # This attempt outlived its lease; another attempt was declined, and the order ended unpaid meanwhile.
        refund = refund_request(order)
    refund_settle(refund)
    raise InvalidState(f"The payment arrived when the order was {order.status}: it is refunded.")


def _raise_completed(order: Order, traceparent: str) -> None:
    """Raise PaymentCompleted in the caller's transaction; its subscriber confirms the order."""
    event = PaymentCompleted(
        order_id=order.id,
        user_id=order.user_id,
        amount=order.pay_amount,
        paid_at=database_time(),
        traceparent=traceparent,
    )
    payment_completed.send(sender=Order, event=event, order=order)
    if order.status != Order.Status.PAID:
        raise RuntimeError(f"the payment of order {order.id} is completed, and no subscriber has confirmed the order")


def _reopen(attempt: Attempt) -> None:
    """Make a declined order PENDING again, unless another attempt has taken over."""
    with transaction.atomic():
        leased = Order.objects.filter(id=attempt.order_id, status=Order.Status.PAYING, paying_until=attempt.until)
        if leased.update(status=Order.Status.PENDING, paying_until=None):
            discard_keys(user_id=attempt.user_id, operation=_OPERATION, parameters=_parameters(attempt.order_id))


def _end_lease(attempt: Attempt) -> None:
    """End the lease of a payment in doubt, so that the next call can repeat it at once."""
    Order.objects.filter(id=attempt.order_id, status=Order.Status.PAYING, paying_until=attempt.until).update(
        paying_until=database_time()
    )


def _parameters(order_id: int) -> bytes:
    return str(order_id).encode()


def _store_response(order: Order) -> PaidOrder:
    """Store the response of a paid order for all calls that pay it, and return it."""
    assert order.paid_at is not None
    response = PaidOrder(order_id=order.id, status="PAID", paid_at=order.paid_at)
    store_response(user_id=order.user_id, operation=_OPERATION, parameters=_parameters(order.id), response=response)
    return response
