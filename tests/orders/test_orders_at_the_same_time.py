"""What happens to one order, or to one coupon, at once; each guard is proven by what happens without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from django.db.models import QuerySet
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from coupons.consumer_groups import ISSUE
from coupons.errors import CouponNotUsable
from coupons.issuance.issue import issue_many
from coupons.messages import read_issue_task
from coupons.models import Coupon, CouponLedgerEntry, IssueRequest, UserCoupon
from devstack import wait_until
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from orders.errors import InProgress
from orders.models import Order, OrderManager, Product
from orders.services import expiring, paying
from orders.services.cancelling import order_cancel
from orders.services.expiring import expire_unpaid
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.gateway import Call, MemoryBooks, Move, memory
from tests.support.messages import requests
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

pytestmark = pytest.mark.django_db(transaction=True)

MakeCoupon = Callable[..., Coupon]

MINJI = 7
AT_ONCE = 50
SECONDS = 20


@pytest.fixture(autouse=True)
def books(settings: Settings) -> MemoryBooks:
    """What the provider has in its books."""
    settings.PAYMENT_GATEWAY = "tests.support.gateway.MemoryGateway"
    memory.reset()
    return memory.books


@pytest.fixture
def tea(db: None) -> Product:
    return Product.objects.create(name="tea", price=1000)


@pytest.fixture
def user_coupon(make_coupon: MakeCoupon) -> UserCoupon:
    """A coupon of Minji's."""
    return issue_to_minji(make_coupon())


def issue_to_minji(coupon: Coupon) -> UserCoupon:
    BatchHandler(ISSUE).handle(requests(coupon, [MINJI]), StopFlag())
    return UserCoupon.objects.get(coupon=coupon, user_id=MINJI)


def place(tea: Product, user_coupon: UserCoupon | None = None) -> int:
    coupon_id = None if user_coupon is None else user_coupon.id
    return order_create(user_id=MINJI, items=[OrderItemInput(tea.id, 1)], user_coupon_id=coupon_id).order_id


def pay(order_id: int) -> Any:
    return order_pay(order_id=order_id, user_id=MINJI)


def cancel(order_id: int) -> Any:
    return order_cancel(order_id=order_id, user_id=MINJI)


def let_time_to_pay_end(order_id: int) -> None:
    Order.objects.filter(id=order_id).update(expires_at="2020-01-01T00:00Z")


def status_of(order_id: int) -> str:
    return Order.objects.get(id=order_id).status


def events_of(order_id: int) -> list[str]:
    rows = OutboxMessage.objects.filter(key=str(order_id).encode(), event_type__startswith="order.")
    return list(rows.order_by("id").values_list("event_type", flat=True))


def steps_of(user_coupon: UserCoupon) -> list[str]:
    return list(CouponLedgerEntry.objects.filter(user_coupon=user_coupon).order_by("id").values_list("step", flat=True))


def outcome(future: Future[Any]) -> str:
    """How an attempt ended: OK, or the name of the error."""
    error = future.exception(SECONDS)
    return type(error).__name__ if error else "OK"


@contextmanager
def provider_on_the_line(calls: int = 1) -> Iterator[Callable[[], None]]:
    """The provider lets ``calls`` wait for its answer until the value is called; later calls are answered at once."""
    held: list[bool] = []

    def answer(call: Call, move: Move) -> None:
        if len(memory.books.calls) <= calls:
            wait_until(lambda: held, SECONDS, "the provider was not let answer")
        move()

    memory.answer = answer
    try:
        yield lambda: held.append(True)
    finally:
        held.append(True)


def when_asked(calls: int = 1) -> None:
    wait_until(lambda: len(memory.books.calls) >= calls, SECONDS, f"the provider was not asked {calls} times", 0.005)


def want_one_coupon_at_once(tea: Product, user_coupon: UserCoupon) -> Counter[str]:
    """So many orders that all wait for the row of the coupon, and go on together."""
    with OpenTransaction(lambda: UserCoupon.objects.select_for_update().get(id=user_coupon.id)) as other:
        futures = [in_another_session(lambda: place(tea, user_coupon)) for _ in range(AT_ONCE)]
        wait_until_blocked(AT_ONCE)
        other.rollback()
        return Counter(outcome(future) for future in futures)


def test_one_coupon_wanted_by_fifty_orders_at_once_is_held_by_one(tea: Product, user_coupon: UserCoupon) -> None:
    assert want_one_coupon_at_once(tea, user_coupon) == {"OK": 1, "CouponNotUsable": AT_ONCE - 1}
    assert (CouponNotUsable.status, CouponNotUsable.code) == (409, "coupon_not_usable")
    assert list(Order.objects.values_list("user_coupon_id", flat=True)) == [user_coupon.id]
    assert steps_of(user_coupon) == ["HELD"]


def test_a_hold_that_does_not_look_at_the_status_would_give_the_coupon_to_others_too(
    tea: Product, user_coupon: UserCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    whatever_the_status = QuerySet.filter

    def without_the_status(self: QuerySet[Any], *args: Any, **wanted: Any) -> Any:
        if self.model is UserCoupon and wanted.get("status") == "ISSUED":
            del wanted["status"]
        return whatever_the_status(self, *args, **wanted)

    monkeypatch.setattr(QuerySet, "filter", without_the_status)
    # Only the unique index on orders is left to refuse the others, with a fault instead of an answer.
    assert want_one_coupon_at_once(tea, user_coupon) == {"OK": 1, "IntegrityError": AT_ONCE - 1}


def test_two_who_pay_at_once_ask_the_provider_once(tea: Product, books: MemoryBooks) -> None:
    order_id = place(tea)
    with provider_on_the_line() as answer:
        first = in_another_session(lambda: pay(order_id))
        when_asked()
        with pytest.raises(InProgress):
            pay(order_id)
        answer()
        paid = first.result(SECONDS)
    assert pay(order_id) == paid
    assert len(books.asked("charge", order_id)) == 1
    assert events_of(order_id) == ["order.completed.v1"]


def test_without_the_lease_both_would_ask_the_provider_and_only_its_key_would_save_the_money(
    tea: Product, books: MemoryBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paying, "_is_leased", lambda order, now: False)
    order_id = place(tea)
    with provider_on_the_line() as answer:
        first = in_another_session(lambda: pay(order_id))
        when_asked()
        second = in_another_session(lambda: pay(order_id))
        when_asked(2)
        answer()
        assert first.result(SECONDS) == second.result(SECONDS)
    assert books.charges(order_id) == 1
    assert events_of(order_id) == ["order.completed.v1"]


def test_paying_and_expiring_at_once_whoever_has_the_order_first_wins(tea: Product, user_coupon: UserCoupon) -> None:
    order_id = place(tea, user_coupon)
    with provider_on_the_line() as answer:
        payment = in_another_session(lambda: pay(order_id))
        when_asked()
        let_time_to_pay_end(order_id)
        assert expire_unpaid(StopFlag()) == 0
        answer()
        assert outcome(payment) == "OK"
    assert expire_unpaid(StopFlag()) == 0
    assert status_of(order_id) == "PAID"
    assert steps_of(user_coupon) == ["HELD", "USED"]

    other_id = place(tea)
    let_time_to_pay_end(other_id)
    with OpenTransaction(lambda: expire_unpaid(StopFlag())) as sweep:
        payment = in_another_session(lambda: pay(other_id))
        wait_until_blocked(beside=payment)
        sweep.commit()
        assert outcome(payment) == "InvalidState"
    assert status_of(other_id) == "EXPIRED"


def test_a_sweep_that_passed_over_the_states_would_expire_what_is_being_paid(
    tea: Product, user_coupon: UserCoupon, books: MemoryBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(tea, user_coupon)
    with provider_on_the_line() as answer:
        payment = in_another_session(lambda: pay(order_id))
        when_asked()
        let_time_to_pay_end(order_id)
        in_any_state = list(Order.objects.filter(id=order_id))
        monkeypatch.setattr(expiring, "_overdue", lambda after: in_any_state if after is None else [])
        assert expire_unpaid(StopFlag()) == 1
        monkeypatch.undo()
        answer()
        # The money has moved by then, and has to go back.
        assert outcome(payment) == "InvalidState"
    assert books.kept(order_id) == 0
    assert len(books.asked("refund", order_id)) == 1


def test_cancelling_while_the_payment_is_on_the_line_has_to_wait_for_it(tea: Product, books: MemoryBooks) -> None:
    order_id = place(tea)
    with provider_on_the_line() as answer:
        payment = in_another_session(lambda: pay(order_id))
        when_asked()
        with pytest.raises(InProgress):
            cancel(order_id)
        answer()
        assert outcome(payment) == "OK"
    cancel(order_id)
    assert (status_of(order_id), books.kept(order_id)) == ("CANCELLED", 0)
    assert events_of(order_id) == ["order.completed.v1", "order.cancelled.v1"]


def test_a_payment_that_waits_for_a_cancellation_takes_no_money(tea: Product, books: MemoryBooks) -> None:
    order_id = place(tea)
    with OpenTransaction(lambda: cancel(order_id)) as cancellation:
        payment = in_another_session(lambda: pay(order_id))
        wait_until_blocked(beside=payment)
        cancellation.commit()
        assert outcome(payment) == "InvalidState"
    assert books.calls == []
    assert events_of(order_id) == []


def test_without_the_lock_on_the_order_a_cancelled_one_would_be_charged(
    tea: Product, books: MemoryBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(tea)
    with OpenTransaction(lambda: cancel(order_id)) as cancellation:
        monkeypatch.setattr(OrderManager, "lock", lambda orders, order_id, *, user_id=None: orders.get(id=order_id))
        payment = in_another_session(lambda: pay(order_id))
        wait_until_blocked(beside=payment)
        cancellation.commit()
        outcome(payment)
    assert len(books.asked("charge", order_id)) == 1


def test_two_who_cancel_at_once_give_the_money_back_once_and_tell_it_once(
    tea: Product, user_coupon: UserCoupon, books: MemoryBooks
) -> None:
    order_id = order_create(user_id=MINJI, items=[OrderItemInput(tea.id, 2)], user_coupon_id=user_coupon.id).order_id
    pay(order_id)
    with provider_on_the_line(3) as answer:
        both = [in_another_session(lambda: cancel(order_id)) for _ in range(2)]
        when_asked(3)
        answer()
        first, second = (one.result(SECONDS) for one in both)
    assert first == second
    assert {call.key for call in books.asked("refund", order_id)} == {f"{order_id}-refund"}
    assert books.kept(order_id) == 0
    assert events_of(order_id) == ["order.completed.v1", "order.cancelled.v1"]
    assert steps_of(user_coupon) == ["HELD", "USED", "RETURNED_TO_USER"]


def test_without_a_second_look_at_the_order_its_cancellation_would_be_told_twice(
    tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(tea)
    pay(order_id)
    as_it_was = Order.objects.filter(id=order_id).values().get()
    lock = OrderManager.lock

    def lock_to_cancel(orders: OrderManager, order_id: int, *, user_id: int | None = None) -> Order:
        return Order(**as_it_was) if user_id is None else lock(orders, order_id, user_id=user_id)

    monkeypatch.setattr(OrderManager, "lock", lock_to_cancel)
    with provider_on_the_line(3) as answer:
        both = [in_another_session(lambda: cancel(order_id)) for _ in range(2)]
        when_asked(3)
        answer()
        assert [outcome(one) for one in both] == ["OK", "OK"]
    assert events_of(order_id) == ["order.completed.v1", "order.cancelled.v1", "order.cancelled.v1"]


def taken_back(coupon: Coupon, tea: Product) -> int:
    """A paid order with Minji's coupon of that kind, whose cancellation gives the coupon back to the pool."""
    order_id = place(tea, issue_to_minji(coupon))
    pay(order_id)
    return order_id


def issue_beside_a_cancellation(coupon: Coupon, order_id: int, user_ids: list[int]) -> str:
    """Others claim the coupon while it is being given back; returns how the cancellation ended."""
    tasks = [read_issue_task(message) for message in requests(coupon, user_ids)]
    with OpenTransaction(lambda: issue_many(tasks)) as issuer:
        cancellation = in_another_session(lambda: cancel(order_id))
        wait_until_blocked(beside=cancellation)
        issuer.commit()
        return outcome(cancellation)


@pytest.fixture
def pool(make_coupon: MakeCoupon) -> Coupon:
    """Three pieces, which go back to the pool."""
    return make_coupon(total_quantity=3, refund_policy="RETURN_TO_POOL")


def test_a_coupon_returned_to_the_pool_while_others_claim_keeps_the_stock_right(pool: Coupon, tea: Product) -> None:
    order_id = taken_back(pool, tea)
    assert issue_beside_a_cancellation(pool, order_id, [1, 2, 3]) == "OK"
    pool.refresh_from_db()
    assert pool.issued == UserCoupon.objects.exclude(status="REVOKED").count() == 2
    assert IssueRequest.objects.get(user_id=3).reason == "SOLD_OUT"

    BatchHandler(ISSUE).handle(requests(pool, [4, MINJI, 5]), StopFlag())
    pool.refresh_from_db()
    assert pool.issued == UserCoupon.objects.exclude(status="REVOKED").count() == 3
    reasons = dict(IssueRequest.objects.filter(user_id__in=[4, MINJI, 5]).values_list("user_id", "reason"))
    assert reasons == {4: None, MINJI: "ALREADY_ISSUED", 5: "SOLD_OUT"}


def test_a_stock_that_is_read_before_the_lock_would_be_wrong(
    pool: Coupon, tea: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = taken_back(pool, tea)

    def read_and_write(*, user_coupon_id: int, order_id: int) -> None:
        issued = Coupon.objects.get(id=pool.id).issued
        UserCoupon.objects.filter(id=user_coupon_id).update(status="REVOKED")
        Coupon.objects.filter(id=pool.id).update(issued=issued - 1)

    monkeypatch.setattr("orders.services.refunding.coupon_refund", read_and_write)
    assert issue_beside_a_cancellation(pool, order_id, [1, 2]) == "OK"
    pool.refresh_from_db()
    assert pool.issued != UserCoupon.objects.exclude(status="REVOKED").count()
