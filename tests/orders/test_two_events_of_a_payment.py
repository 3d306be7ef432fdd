"""PaymentCompleted confirms the order, which raises OrderCompleted: both belong to one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.db import connection

from kafka_bridge.models import OutboxMessage
from orders.events import PaymentCompleted
from orders.models import Order
from orders.services.confirming import order_confirm
from orders.services.paying import order_pay
from orders.signals import payment_completed
from tests.support.gateway import Memory

from .conftest import ALICE, LONG_AGO, GiveCoupon, Place

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]

Subscriber = Callable[..., None]


@pytest.fixture
def subscribe() -> Iterator[Callable[[Subscriber], None]]:
    """``subscribe(function)``: it gets every PaymentCompleted, after the confirmation."""
    subscribed: list[Subscriber] = []

    def connect(subscriber: Subscriber) -> None:
        subscribed.append(subscriber)
        payment_completed.connect(subscriber)

    yield connect
    for one in subscribed:
        assert payment_completed.disconnect(one)


def test_the_payment_is_an_event_in_the_process_and_the_confirmed_order_one_for_others(
    place: Place, subscribe: Callable[[Subscriber], None]
) -> None:
    completed: list[PaymentCompleted] = []

    def keep(*, event: PaymentCompleted, **_signal: object) -> None:
        assert connection.in_atomic_block
        completed.append(event)

    subscribe(keep)
    order_id = place()
    paid = order_pay(order_id=order_id, user_id=ALICE)
    assert order_pay(order_id=order_id, user_id=ALICE) == paid
    (event,) = completed
    assert (event.order_id, event.user_id, event.amount, event.paid_at) == (order_id, ALICE, 12_900, paid.paid_at)
    assert OutboxMessage.objects.get().event_id == Order.objects.get().completed_event_id


def test_a_subscriber_that_fails_undoes_the_confirmation_and_the_next_attempt_makes_it(
    place: Place, give_coupon: GiveCoupon, provider: Memory, subscribe: Callable[[Subscriber], None]
) -> None:
    tries: list[str] = []

    def fail_once(**_signal: object) -> None:
        tries.append(Order.objects.get().status)
        if len(tries) == 1:
            raise LookupError("no room")

    mine = give_coupon()
    order_id = place(userCouponId=mine.id)
    subscribe(fail_once)
    with pytest.raises(LookupError):
        order_pay(order_id=order_id, user_id=ALICE)
    mine.refresh_from_db()
    assert (Order.objects.get().status, mine.status, OutboxMessage.objects.count()) == ("PAYING", "HELD", 0)

    Order.objects.update(paying_until=LONG_AGO)
    order_pay(order_id=order_id, user_id=ALICE)
    mine.refresh_from_db()
    assert (Order.objects.get().status, mine.status, OutboxMessage.objects.count()) == ("PAID", "USED", 1)
    assert (tries, provider.books.charges(order_id)) == (["PAID", "PAID"], 1)


def test_a_payment_that_no_subscriber_confirms_stays_in_doubt(place: Place) -> None:
    order_id = place()
    assert payment_completed.disconnect(order_confirm, dispatch_uid="order_confirm")
    try:
        with pytest.raises(RuntimeError, match="no subscriber has confirmed"):
            order_pay(order_id=order_id, user_id=ALICE)
    finally:
        payment_completed.connect(order_confirm, dispatch_uid="order_confirm")
    assert (Order.objects.get().status, OutboxMessage.objects.count()) == ("PAYING", 0)
