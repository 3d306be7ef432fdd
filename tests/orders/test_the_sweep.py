"""What a sweep does with abandoned orders, and what keeps it from the others."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.functions import Now
from pytest_django import Settings

from common.api.errors import Unavailable
from common.processes.lifecycle import StopFlag
from common.trace_context import read_traceparent
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, CouponLedgerEntry, UserCoupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from kafka_bridge.operating.housekeeping import housekeep
from orders.management.commands.expire_orders import SweepIncomplete, sweep
from orders.models import IdempotencyKey, Order, Product
from orders.services import expiring
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.factories import CouponFactory
from tests.support.gateway import Call, MemoryBooks, Move, approve, memory, time_out
from tests.support.messages import requests
from tests.support.threads import OpenTransaction, in_another_session

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
    return order_create(user_id=user_id, items=[OrderItemInput(tea.id, 2)], user_coupon_id=coupon_id).order_id


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


def spoil(order_ids: list[int], step: str) -> None:
    """The ledger has the step already that comes next, and the coupon has not."""
    for order in Order.objects.filter(id__in=order_ids):
        assert order.user_coupon_id is not None
        CouponLedgerEntry.objects.create(user_coupon_id=order.user_coupon_id, order_id=order.id, step=step)


def take_coupons_away() -> None:
    UserCoupon.objects.update(status="ISSUED")


def test_orders_that_cannot_expire_keep_nobody_waiting(tea: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiring, "_BATCH", 2)
    users = range(MINJI, MINJI + 6)
    bad = [place(tea, user_id=user_id, user_coupon=issue_to(user_id)) for user_id in users]
    take_coupons_away()
    UserCoupon.objects.filter(ledger__order_id__in=bad[:3]).update(status="HELD")
    spoil(bad[:3], "RELEASED")
    for order_id in bad:
        change(order_id, expires_at=LONG_AGO)
    others = [place(tea) for _ in range(3)]
    for order_id in others:
        change(order_id, expires_at="2020-01-02T00:00Z")
    assert sweep(StopFlag())["orders expired"] == 3
    assert {status_of(order_id) for order_id in others} == {"EXPIRED"}
    assert {status_of(order_id) for order_id in bad} == {"PENDING"}


@pytest.mark.parametrize("wrong", ["coupon", "ledger"])
def test_a_payment_that_cannot_be_noted_keeps_nobody_waiting(tea: Product, books: MemoryBooks, wrong: str) -> None:
    bad, good = place(tea, user_coupon=issue_to(MINJI)), place(tea)
    change(bad, status="PAYING", paying_until=LONG_AGO)
    change(good, status="PAYING", paying_until="2020-01-02T00:00Z")
    if wrong == "coupon":
        take_coupons_away()
    else:
        spoil([bad], "USED")
    assert sweep(StopFlag())["payments settled"] == 1
    assert [status_of(bad), status_of(good)] == ["PAYING", "PAID"]
    # It is asked about again, and the money is taken once.
    change(bad, paying_until=LONG_AGO)
    sweep(StopFlag())
    assert (len(books.asked("charge", bad)), books.charges(bad)) == (2, 1)


def test_a_refund_that_cannot_be_noted_keeps_nobody_waiting(tea: Product, books: MemoryBooks) -> None:
    bad, good = place(tea, user_coupon=issue_to(MINJI)), place(tea)
    for order_id, requested_at in ((bad, LONG_AGO), (good, "2020-01-02T00:00Z")):
        order_pay(order_id=order_id, user_id=MINJI)
        change(order_id, refund_requested_at=requested_at)
    spoil([bad], "RETURNED_TO_USER")
    assert sweep(StopFlag())["refunds settled"] == 1
    assert [status_of(bad), status_of(good)] == ["PAID", "CANCELLED"]


def test_an_order_that_somebody_holds_keeps_nobody_waiting(tea: Product) -> None:
    overdue, paying, refunding = orders = [place(tea) for _ in range(3)]
    order_pay(order_id=refunding, user_id=MINJI)
    change(overdue, expires_at=LONG_AGO)
    change(paying, status="PAYING", paying_until=LONG_AGO)
    change(refunding, refund_requested_at=LONG_AGO)
    locked = Order.objects.filter(id__in=orders).select_for_update()
    with OpenTransaction(lambda: list(locked)):
        done = in_another_session(lambda: sweep(StopFlag())).result(10)
        assert set(done.values()) == {0}
    assert sum(sweep(StopFlag()).values()) == 3


def test_of_two_sweeps_at_once_one_asks_for_each_payment_and_each_refund(tea: Product, books: MemoryBooks) -> None:
    paying, refunding = place(tea), place(tea)
    order_pay(order_id=refunding, user_id=MINJI)
    change(paying, status="PAYING", paying_until=LONG_AGO)
    change(refunding, refund_requested_at=LONG_AGO)
    others: list[dict[str, int]] = []

    def meanwhile(call: Call, move: Move) -> None:
        memory.answer = approve if others else meanwhile
        others.append(in_another_session(lambda: sweep(StopFlag())).result(10))
        move()

    memory.answer = meanwhile
    mine = sweep(StopFlag())
    assert [status_of(paying), status_of(refunding)] == ["PAID", "CANCELLED"]
    assert (len(books.asked("charge", paying)), len(books.asked("refund", refunding))) == (1, 1)
    assert sum(sum(done.values()) for done in [mine, *others]) == 2


def test_a_sweep_that_takes_long_ends_and_leaves_the_rest_to_the_next(
    tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiring, "_LONGEST_SECONDS", 0)
    in_doubt = [place(tea) for _ in range(3)]
    for order_id in in_doubt:
        change(order_id, status="PAYING", paying_until=LONG_AGO)
    for settled in range(1, 4):
        sweep(StopFlag())
        assert Order.objects.filter(status="PAID").count() == settled


def test_while_the_provider_is_away_a_sweep_asks_three_times_and_expires_all_the_same(
    tea: Product, books: MemoryBooks
) -> None:
    in_doubt, expired = [place(tea) for _ in range(5)], place(tea)
    for order_id in in_doubt:
        change(order_id, status="PAYING", paying_until=LONG_AGO)
    change(expired, expires_at=LONG_AGO)
    memory.answer = time_out
    assert sweep(StopFlag())["orders expired"] == 1
    assert len(books.calls) == 3


def test_payments_that_get_no_answer_go_to_the_end_of_the_line(tea: Product) -> None:
    unlucky, others = [place(tea) for _ in range(4)], [place(tea), place(tea)]
    for order_id in unlucky:
        change(order_id, status="PAYING", paying_until=LONG_AGO)
    for order_id in others:
        change(order_id, status="PAYING", paying_until="2020-01-02T00:00Z")

    def no_answer_for_some(call: Call, move: Move) -> None:
        time_out(call, move) if call.order_id in unlucky else move()

    memory.answer = no_answer_for_some
    sweep(StopFlag())
    sweep(StopFlag())
    assert {status_of(order_id) for order_id in unlucky} == {"PAYING"}
    assert {status_of(order_id) for order_id in others} == {"PAID"}


def test_a_refund_that_got_no_answer_is_asked_for_again_but_not_at_once(tea: Product, books: MemoryBooks) -> None:
    order_id = place(tea)
    order_pay(order_id=order_id, user_id=MINJI)
    memory.answer = time_out
    with pytest.raises(Unavailable, match="The refund follows as soon as"):
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
        order_create(user_id=MINJI, items=[OrderItemInput(tea.id, 1)], idempotency_key=key)
    for key, hours in (("old", 49), ("young", 47)):
        IdempotencyKey.objects.filter(key=key).update(created_at=Now() - timedelta(hours=hours))
    assert housekeep(StopFlag()).deleted["idempotency keys"] == 1
    assert list(IdempotencyKey.objects.values_list("key", flat=True)) == ["young"]


@pytest.fixture
def no_order_minutes() -> Iterator[None]:
    """A table that only the alerts of orders read is missing, as before a migration."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orders_orderminute RENAME TO orders_orderminute_away")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE orders_orderminute_away RENAME TO orders_orderminute")


def test_a_task_that_fails_is_named_and_keeps_no_other_from_running(tea: Product, no_order_minutes: None) -> None:
    order_id = place(tea)
    change(order_id, expires_at=LONG_AGO)
    with pytest.raises(SweepIncomplete, match="not done: order alerts; the log has the error"):
        sweep(StopFlag())
    assert status_of(order_id) == "EXPIRED"
    with pytest.raises(CommandError, match="not done: order alerts"):
        call_command("expire_orders")


def test_what_the_sweep_tells_has_a_trace_of_its_own(tea: Product) -> None:
    refunded, paid = place(tea), place(tea)
    order_pay(order_id=refunded, user_id=MINJI)
    change(refunded, refund_requested_at=LONG_AGO)
    change(paid, status="PAYING", paying_until=LONG_AGO)
    sweep(StopFlag())
    traces = OutboxMessage.objects.filter(event_type__startswith="order.").values_list("traceparent", flat=True)
    assert len(set(traces)) == 3
    assert all(read_traceparent(trace) for trace in traces)
