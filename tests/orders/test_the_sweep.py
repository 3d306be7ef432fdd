"""What a sweep does with orders that nobody comes back for, and what keeps it from the others."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from pytest_django import Settings

from coupons.errors import Unavailable
from coupons.handlers import ISSUE
from coupons.messages import is_traceparent
from coupons.models import Coupon, UserCoupon
from kafka_bridge.batch import BatchHandler
from kafka_bridge.lifecycle import StopFlag
from kafka_bridge.models import OutboxMessage
from orders.management.commands.expire_orders import sweep
from orders.models import IdempotencyKey, Order, Product
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import Wish, order_create
from tests.support.factories import CouponFactory
from tests.support.gateway import Call, MemoryBooks, Move, memory, time_out
from tests.support.messages import requests

pytestmark = pytest.mark.django_db(transaction=True)

MINJI, HARU = 7, 8
LONG_AGO = "2020-01-01T00:00Z"


@pytest.fixture(autouse=True)
def books(settings: Settings) -> MemoryBooks:
    settings.PAYMENT_GATEWAY = "tests.support.gateway.MemoryGateway"
    memory.reset()
    return memory.books


@pytest.fixture
def tea() -> Product:
    return Product.objects.create(name="tea", price=1000)


def place(tea: Product, *, user_id: int = MINJI, user_coupon: UserCoupon | None = None) -> int:
    coupon_id = None if user_coupon is None else user_coupon.id
    return order_create(user_id=user_id, wishes=[Wish(tea.id, 2)], user_coupon_id=coupon_id).order_id


def issue_to(user_id: int) -> UserCoupon:
    coupon: Coupon = CouponFactory.create()
    BatchHandler(ISSUE).handle(requests(coupon, [user_id]), StopFlag())
    return UserCoupon.objects.get(coupon=coupon, user_id=user_id)


def change(order_id: int, **values: object) -> None:
    Order.objects.filter(id=order_id).update(**values)


def status_of(order_id: int) -> str:
    return Order.objects.get(id=order_id).status


def test_an_unpaid_order_past_its_time_expires_and_its_coupon_can_be_used_again(tea: Product) -> None:
    user_coupon = issue_to(MINJI)
    order_id = place(tea, user_coupon=user_coupon)
    assert sweep(StopFlag())["orders expired"] == 0
    change(order_id, expires_at=LONG_AGO)
    assert sweep(StopFlag())["orders expired"] == 1
    assert status_of(order_id) == "EXPIRED"
    assert status_of(place(tea, user_coupon=user_coupon)) == "PENDING"


def test_many_orders_expire_in_one_sweep(tea: Product) -> None:
    amounts = {"total_amount": 1, "pay_amount": 1}
    Order.objects.bulk_create(Order(user_id=MINJI, expires_at=LONG_AGO, **amounts) for _ in range(450))
    assert sweep(StopFlag())["orders expired"] == 450
    assert set(Order.objects.values_list("status", flat=True)) == {"EXPIRED"}


def test_an_order_whose_coupon_is_not_as_it_left_it_keeps_nobody_waiting(tea: Product) -> None:
    spoiled_expiry, spoiled_payment = issue_to(MINJI), issue_to(HARU)
    first = place(tea, user_coupon=spoiled_expiry)
    change(first, expires_at=LONG_AGO)
    second = place(tea, user_id=HARU, user_coupon=spoiled_payment)
    change(second, status="PAYING", paying_until=LONG_AGO)
    UserCoupon.objects.update(status="ISSUED")
    expired, paid = place(tea), place(tea)
    change(expired, expires_at="2020-01-02T00:00Z")
    change(paid, status="PAYING", paying_until="2020-01-02T00:00Z")
    done = sweep(StopFlag())
    assert (done["orders expired"], done["payments settled"]) == (1, 1)
    assert [status_of(order) for order in (expired, paid, first, second)] == ["EXPIRED", "PAID", "PENDING", "PAYING"]


def test_while_the_provider_is_away_a_sweep_asks_once_and_expires_all_the_same(
    tea: Product, books: MemoryBooks
) -> None:
    in_doubt, expired = [place(tea), place(tea)], place(tea)
    for order_id in in_doubt:
        change(order_id, status="PAYING", paying_until=LONG_AGO)
    change(expired, expires_at=LONG_AGO)
    memory.answer = time_out
    assert sweep(StopFlag())["orders expired"] == 1
    assert len(books.calls) == 1


def test_a_payment_that_gets_no_answer_goes_to_the_end_of_the_line(tea: Product) -> None:
    unlucky, others = place(tea), [place(tea), place(tea)]
    change(unlucky, status="PAYING", paying_until="2020-01-01T00:00Z")
    for order_id in others:
        change(order_id, status="PAYING", paying_until="2020-01-02T00:00Z")

    def no_answer_for_one(call: Call, move: Move) -> None:
        time_out(call, move) if call.order_id == unlucky else move()

    memory.answer = no_answer_for_one
    sweep(StopFlag())
    sweep(StopFlag())
    assert [status_of(order_id) for order_id in (unlucky, *others)] == ["PAYING", "PAID", "PAID"]


def test_a_refund_that_got_no_answer_is_asked_for_again_but_not_at_once(tea: Product, books: MemoryBooks) -> None:
    order_id = place(tea)
    order_pay(order_id=order_id, user_id=MINJI)
    memory.answer = time_out
    with pytest.raises(Unavailable, match="given back as soon as"):
        order_cancel(order_id=order_id, user_id=MINJI)
    memory.answer = lambda call, move: move()
    assert sweep(StopFlag())["refunds settled"] == 0
    change(order_id, refund_requested_at=LONG_AGO)
    assert sweep(StopFlag())["refunds settled"] == 1
    assert (status_of(order_id), books.kept(order_id)) == ("CANCELLED", 0)


def test_a_sweep_that_is_stopped_begins_nothing_new(tea: Product, books: MemoryBooks) -> None:
    first, second = place(tea), place(tea)
    for order_id in (first, second):
        change(order_id, status="PAYING", paying_until=LONG_AGO)
    stop = StopFlag()

    def stop_meanwhile(call: Call, move: Move) -> None:
        stop.request()
        move()

    memory.answer = stop_meanwhile
    sweep(stop)
    assert sorted([status_of(first), status_of(second)]) == ["PAID", "PAYING"]


def test_idempotency_keys_are_forgotten_after_two_days_and_not_after_one(tea: Product) -> None:
    for key in ("old", "young"):
        order_create(user_id=MINJI, wishes=[Wish(tea.id, 1)], idempotency_key=key)
    for key, hours in (("old", 49), ("young", 47)):
        IdempotencyKey.objects.filter(key=key).update(created_at=Now() - timedelta(hours=hours))
    assert sweep(StopFlag())["idempotency keys forgotten"] == 1
    assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["young"]


def test_what_the_sweep_tells_has_a_trace_of_its_own(tea: Product) -> None:
    refunded, paid = place(tea), place(tea)
    order_pay(order_id=refunded, user_id=MINJI)
    change(refunded, refund_requested_at=LONG_AGO)
    change(paid, status="PAYING", paying_until=LONG_AGO)
    sweep(StopFlag())
    traces = OutboxMessage.objects.filter(event_type__startswith="order.").values_list("traceparent", flat=True)
    assert len(set(traces)) == 3
    assert all(is_traceparent(trace) for trace in traces)
