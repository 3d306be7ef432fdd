"""The way of one order: its states, its payment, its coupon, and what has become of its events in every effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from django.conf import settings

from common.postgres.clock import database_time
from coupons.models import CouponLedgerEntry, UserCoupon
from kafka_bridge.operating.delivery import (
    ON_ITS_WAY_SECONDS,
    Delivery,
    Problem,
    Surroundings,
    deliveries,
    publishing_problem,
    read_surroundings,
)
from kafka_bridge.outbox.message_trace import OutboxTrace, outbox_traces
from kafka_bridge.registry import groups

from .clients.payment import LONGEST_CALL_SECONDS
from .messages import ORDER_CANCELLED, ORDER_COMPLETED
from .models import Order, StoredOrder

_ROLE = "orders"
# The sweep runs every ten seconds.
_SWEEP_GRACE = timedelta(seconds=30)
_REFUND_IN_DOUBT = timedelta(seconds=LONGEST_CALL_SECONDS + 10) + _SWEEP_GRACE
_MOST_STEPS = 20


class OrderCause(StrEnum):
    """Why an order does not go on, besides the causes of its events."""

    SWEEP_DOWN = "sweep-down"
    PAYMENT_IN_DOUBT = "payment-in-doubt"
    REFUND_IN_DOUBT = "refund-in-doubt"
    EXPIRY_LATE = "expiry-late"


@dataclass(frozen=True, slots=True)
class EventTrace:
    """An event of the order and its effects. ``message`` None: its row is pruned, so it was published."""

    event_id: UUID
    event_type: str
    message: OutboxTrace | None
    problem: Problem | None
    effects: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class OrderTrace:
    """What the service has of one order. ``problem`` None: nothing is wrong. ``read_at``: the database's time."""

    order: Order
    user_coupon: UserCoupon | None
    ledger: Sequence[CouponLedgerEntry]
    events: Sequence[EventTrace]
    stored: StoredOrder | None
    read_at: datetime
    problem: Problem | None


def order_trace(order_id: int) -> OrderTrace | None:
    """Trace an order; None if there is none with this id. By primary keys and unique indexes, in few queries."""
    order = Order.objects.prefetch_related("lines").filter(pk=order_id).first()
    if order is None:
        return None
    surroundings = read_surroundings()
    now = database_time()
    events = _events(order, surroundings)
    return OrderTrace(
        order=order,
        user_coupon=_user_coupon(order),
        ledger=list(CouponLedgerEntry.objects.filter(order_id=order_id).order_by("id")[:_MOST_STEPS]),
        events=events,
        stored=StoredOrder.objects.filter(pk=order_id).defer("items").first(),
        read_at=now,
        problem=_own_problem(order, now, surroundings) or _problem_of_events(events),
    )


def _user_coupon(order: Order) -> UserCoupon | None:
    if order.user_coupon_id is None:
        return None
    return UserCoupon.objects.filter(pk=order.user_coupon_id).select_related("coupon").first()


def _events(order: Order, surroundings: Surroundings) -> list[EventTrace]:
    ids = {ORDER_COMPLETED: order.completed_event_id, ORDER_CANCELLED: order.cancelled_event_id}
    messages = outbox_traces([event_id for event_id in ids.values() if event_id is not None])
    return [
        _event(event_id, event_type, messages.get(event_id), surroundings)
        for event_type, event_id in ids.items()
        if event_id is not None
    ]


def _event(event_id: UUID, event_type: str, message: OutboxTrace | None, surroundings: Surroundings) -> EventTrace:
    readers = [group for group in groups().values() if event_type in group.event_types and group.inbox]
    effects = deliveries(
        event_id, message, readers, surroundings, lost_after_seconds=settings.RECONCILE_PATIENCE_SECONDS
    )
    problem = None if message is None else publishing_problem(message, surroundings)
    return EventTrace(event_id, event_type, message, problem, effects)


def _own_problem(order: Order, now: datetime, surroundings: Surroundings) -> Problem | None:
    found = _late(order, now)
    if found is None:
        return None
    cause, summary = found
    if not surroundings.running(_ROLE):
        return Problem(OrderCause.SWEEP_DOWN, f"{summary} No running process sweeps the orders.")
    return Problem(cause, summary)


def _late(order: Order, now: datetime) -> tuple[OrderCause, str] | None:
    """Return what the sweep should have done by ``now``."""
    requested = order.refund_requested_at
    if order.status == Order.Status.PAYING and order.paying_until is not None:
        if order.paying_until + timedelta(seconds=ON_ITS_WAY_SECONDS) < now:
            seconds = (now - order.paying_until).total_seconds()
            return (
                OrderCause.PAYMENT_IN_DOUBT,
                f"The outcome of its payment has been unknown for {seconds:.0f} s: the provider did not answer, or the"
                " process that asked it died.",
            )
    elif requested is not None and requested + _REFUND_IN_DOUBT < now:
        seconds = (now - requested).total_seconds()
        return OrderCause.REFUND_IN_DOUBT, f"Its refund was requested {seconds:.0f} s ago and is not certain."
    elif order.status == Order.Status.PENDING and order.expires_at + _SWEEP_GRACE < now:
        return OrderCause.EXPIRY_LATE, "It is past the time to pay it and has not expired."
    return None


def _problem_of_events(events: Sequence[EventTrace]) -> Problem | None:
    for event in events:
        if event.problem is not None:
            return event.problem
        for effect in event.effects:
            if effect.problem is not None:
                return effect.problem
    return None
