"""Whatever happens to orders, in whatever order: money, coupons and events fit their states.

The same sequences run every time. ``ORDER_EXAMPLES=2000 pytest tests/orders/test_any_sequence_of_events.py`` tries so
many others.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connection
from django.db.models import Count, Q
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pytest_django import Settings

from common.api.errors import DomainError
from common.processes.lifecycle import StopFlag
from coupons import invariants as coupon_invariants
from coupons import policy as coupon_policy
from coupons.consumer_groups import ISSUE
from coupons.models import Coupon, CouponLedgerEntry, IssueRequest, UserCoupon
from kafka_bridge.consuming.batch import BatchHandler
from kafka_bridge.models import OutboxMessage
from orders import invariants as order_invariants
from orders.management.commands.expire_orders import sweep
from orders.models import Order, Product
from orders.services.cancelling import order_cancel
from orders.services.paying import order_pay
from orders.services.placing import OrderItemInput, order_create
from tests.support.factories import CouponFactory
from tests.support.gateway import (
    Answer,
    Call,
    Killed,
    Move,
    approve,
    decline,
    die,
    memory,
    move_and_die,
    move_and_time_out,
    time_out,
)
from tests.support.messages import request_id, requests

pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = "2020-01-01T00:00Z"
USERS = (1, 2)
# Comes when every piece is gone, and gets one once a refund has returned it to the pool.
LATECOMER = 3
POLICIES = ("RETURN_TO_USER", "RETURN_TO_POOL", "BURN")
OFF = {"discount_type": "FIXED", "discount_value": 1000}
COUPONS = (*((policy, user_id) for policy in POLICIES for user_id in USERS), ("RETURN_TO_POOL", LATECOMER))

ANSWERS = st.sampled_from([approve, approve, approve, decline, time_out, move_and_time_out, die, move_and_die])
LATE_ANSWERS = st.sampled_from([approve, decline, time_out])
# What others do while a payment hangs past its lease, and how they are answered.
MEANWHILE: tuple[tuple[str, Answer], ...] = (
    ("pay", approve),
    ("pay", decline),
    ("pay", time_out),
    ("pay", move_and_die),
    ("cancel", approve),
    ("cancel", decline),
    ("cancel", move_and_time_out),
    ("time passes", approve),
    ("time passes", decline),
)

# Enough of them to come after each of the others.
AFTERWARDS: tuple[tuple[str, Answer], ...] = (
    ("pay", decline),
    ("cancel", approve),
    ("cancel", decline),
    ("time passes", approve),
)

FOLLOWS = {
    "PENDING": {"PENDING", "PAYING", "PAID", "CANCELLED", "EXPIRED"},
    "PAYING": {"PENDING", "PAYING", "PAID", "CANCELLED", "EXPIRED"},
    "PAID": {"PAID", "CANCELLED"},
    "CANCELLED": {"CANCELLED"},
    "EXPIRED": {"EXPIRED"},
}
HOLDS = {"PENDING": "HELD", "PAYING": "HELD", "PAID": "USED"}

EXAMPLES = hypothesis_settings(
    derandomize="ORDER_EXAMPLES" not in os.environ,
    max_examples=int(os.environ.get("ORDER_EXAMPLES", "15")),
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

_EMPTY = """
    TRUNCATE orders_order, orders_orderline, orders_product, orders_idempotencykey, coupons_couponledgerentry,
             coupons_usercoupon, coupons_coupon, coupons_issuerequest, kafka_bridge_outboxmessage CASCADE
"""


class Shop(RuleBasedStateMachine):
    """Two users with a coupon of each refund policy, one who comes later, and a provider whose books are compared."""

    orders = Bundle("orders")

    @initialize()
    def open(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_EMPTY)
        memory.reset()
        self.seen: dict[int, Order] = {}
        self.product = Product.objects.create(name="tea", price=1000)
        pieces = {"total_quantity": len(USERS), **OFF}
        coupons = [CouponFactory.create(refund_policy=refund_policy, **pieces) for refund_policy in POLICIES]
        BatchHandler(ISSUE).handle([item for coupon in coupons for item in requests(coupon, USERS)], StopFlag())

    def coupon_id(self, coupon: tuple[str, int]) -> int:
        """The id of a user's coupon; 0 if the user has none."""
        refund_policy, user_id = coupon
        found = UserCoupon.objects.filter(coupon__refund_policy=refund_policy, user_id=user_id)
        return found.values_list("id", flat=True).first() or 0

    @rule(
        target=orders,
        coupon=st.sampled_from(COUPONS),
        user_id=st.sampled_from([None, *USERS]),
        quantity=st.integers(1, 2),
    )
    def place_with_a_coupon(self, coupon: tuple[str, int], user_id: int | None, quantity: int) -> Any:
        """Its user, or another user, puts the coupon on an order; with one unit nothing is left to pay."""
        user_id, coupon_id = user_id or coupon[1], self.coupon_id(coupon)
        usable = UserCoupon.objects.filter(Q(expires_at=None), id=coupon_id, user_id=user_id, status="ISSUED").exists()
        order = self.try_to(
            lambda: order_create(
                user_id=user_id,
                items=[OrderItemInput(self.product.id, quantity)],
                user_coupon_id=coupon_id,
            )
        )
        assert (order is not None) == usable
        return multiple() if order is None else order.order_id

    @rule(target=orders, user_id=st.sampled_from(USERS))
    def place_without(self, user_id: int) -> int:
        return order_create(user_id=user_id, items=[OrderItemInput(self.product.id, 1)]).order_id

    @rule(order_id=orders, answer=ANSWERS, key=st.sampled_from([None, "a", "b"]))
    def pay(self, order_id: int, answer: Answer, key: str | None = None) -> None:
        memory.answer = answer
        user_id = Order.objects.get(id=order_id).user_id
        paid = self.try_to(lambda: order_pay(order_id=order_id, user_id=user_id, idempotency_key=key))
        if paid is not None and key is None:
            assert Order.objects.get(id=order_id).paid_at == paid.paid_at

    @rule(order_id=orders, meanwhile=st.lists(st.sampled_from(MEANWHILE), min_size=1, max_size=3), end=LATE_ANSWERS)
    def pay_and_hear_late(self, order_id: int, meanwhile: Sequence[tuple[str, Answer]], end: Answer) -> None:
        """The answer comes when the lease has lapsed and others have been at the order."""
        hung = False

        def answer_late(call: Call, move: Move) -> None:
            nonlocal hung
            assert not hung
            hung = True
            self.leases_lapse()
            for what, others in meanwhile:
                if what == "pay":
                    self.pay(order_id, answer=others)
                elif what == "cancel":
                    self.cancel(order_id, answer=others)
                else:
                    self.time_passes(answer=others, unpaid=True)
            end(call, move)

        self.pay(order_id, answer=answer_late)

    @rule(order_id=orders, answer=ANSWERS)
    def cancel(self, order_id: int, answer: Answer) -> None:
        memory.answer = answer
        user_id = Order.objects.get(id=order_id).user_id
        cancelled = self.try_to(lambda: order_cancel(order_id=order_id, user_id=user_id))
        if cancelled is not None:
            assert Order.objects.get(id=order_id).cancelled_at == cancelled.cancelled_at

    @rule(order_id=orders, key=st.sampled_from([None, "a", "b"]), answer=ANSWERS)
    def pay_and_cancel(self, order_id: int, key: str | None, answer: Answer) -> None:
        self.pay(order_id, answer=approve, key=key)
        self.cancel(order_id, answer=answer)

    @rule(target=orders, user_id=st.sampled_from([*USERS, LATECOMER]), answer=ANSWERS)
    def return_to_the_pool_and_claim(self, user_id: int, answer: Answer) -> Any:
        """A user's unit may return to the pool, and all users ask for it."""
        order_id = self.place_with_a_coupon(("RETURN_TO_POOL", user_id), user_id=None, quantity=2)
        if isinstance(order_id, int):
            self.pay_and_cancel(order_id, key=None, answer=answer)
        for claimant in (*USERS, LATECOMER):
            self.claim(claimant)
        return order_id

    def claim(self, user_id: int) -> None:
        """A user who had a unit gets no other; another user gets one as long as units are left."""
        coupon = Coupon.objects.get(refund_policy="RETURN_TO_POOL")
        had_one = UserCoupon.objects.filter(coupon=coupon, user_id=user_id).exists()
        expected = "ALREADY_ISSUED" if had_one else "SOLD_OUT" if coupon.issued == coupon.total_quantity else None
        [request] = requests(coupon, [user_id])
        BatchHandler(ISSUE).handle([request], StopFlag())
        assert IssueRequest.objects.get(request_id=request_id(request)).reason == expected

    @rule(answer=ANSWERS)
    def sweep(self, answer: Answer) -> None:
        memory.answer = answer
        self.try_to(lambda: sweep(StopFlag()))

    @rule(answer=ANSWERS, unpaid=st.booleans())
    def time_passes(self, answer: Answer, unpaid: bool) -> None:
        """Leases lapse, refunds have been wanted for long; and the time to pay ends, or not yet."""
        self.leases_lapse()
        Order.objects.exclude(refund_requested_at=None).update(refund_requested_at=LONG_AGO)
        if unpaid:
            self.time_to_pay_ends()
        self.sweep(answer=answer)

    def leases_lapse(self) -> None:
        Order.objects.filter(status="PAYING").update(paying_until=LONG_AGO)

    def time_to_pay_ends(self) -> None:
        Order.objects.filter(status="PENDING").update(expires_at=LONG_AGO)

    @rule(coupon=st.sampled_from(COUPONS))
    def coupon_expires(self, coupon: tuple[str, int]) -> None:
        UserCoupon.objects.filter(id=self.coupon_id(coupon)).update(expires_at=LONG_AGO)

    @invariant()
    def everything_fits(self) -> None:
        orders = list(Order.objects.order_by("id"))
        for order in orders:
            self.money_fits(order)
            self.history_fits(order)
        self.events_fit(orders)
        self.coupons_fit(orders)
        self.seen = {order.id: order for order in orders}

    def money_fits(self, order: Order) -> None:
        kept = memory.books.kept(order.id)
        assert memory.books.charges(order.id) <= 1
        may_be = {
            "PENDING": {0},
            "PAYING": {0, order.pay_amount},
            "PAID": {order.pay_amount},
            "CANCELLED": {0},
            "EXPIRED": {0},
        }[order.status]
        if order.refund_requested_at is not None:
            assert order.status in ("PAID", "CANCELLED", "EXPIRED")
            may_be = {0, order.pay_amount}
        assert kept in may_be, f"{order.status}: {kept} won kept"

    def history_fits(self, order: Order) -> None:
        assert (order.status == "PAYING") == (order.paying_until is not None)
        assert (order.paid_at is not None) == (order.completed_event_id is not None)
        assert (order.status == "CANCELLED") == (order.cancelled_at is not None)
        if before := self.seen.get(order.id):
            assert order.status in FOLLOWS[before.status]
            for field in ("paid_at", "completed_event_id", "cancelled_at", "cancelled_event_id"):
                assert getattr(before, field) in (None, getattr(order, field))

    def events_fit(self, orders: list[Order]) -> None:
        told = Counter(
            OutboxMessage.objects.filter(event_type__startswith="order.").values_list("event_type", "event_id")
        )
        expected: Counter[tuple[str, Any]] = Counter()
        for order in orders:
            if order.paid_at is not None:
                expected["order.completed.v1", order.completed_event_id] += 1
                if order.status == "CANCELLED":
                    expected["order.cancelled.v1", order.cancelled_event_id] += 1
        assert told == expected

    def coupons_fit(self, orders: list[Order]) -> None:
        latest = {entry.user_coupon_id: entry for entry in CouponLedgerEntry.objects.order_by("id")}
        living = Counter(order.user_coupon_id for order in orders if order.status in HOLDS and order.user_coupon_id)
        assert set(living.values()) <= {1}
        states = dict(UserCoupon.objects.values_list("id", "status"))
        for pk, status in states.items():
            step = latest[pk].step if pk in latest else "RELEASED"
            assert status == coupon_policy.STATUS_AFTER[step]
            assert (status == "HELD") <= (pk in living)
        for order in orders:
            if order.status in HOLDS and order.user_coupon_id:
                assert states[order.user_coupon_id] == HOLDS[order.status]
        for coupon in Coupon.objects.annotate(had=Count("user_coupons", filter=~Q(user_coupons__status="REVOKED"))):
            assert coupon.issued == coupon.had

    def settle(self) -> None:
        """Once the provider answers, time alone settles everything."""
        self.time_passes(answer=approve, unpaid=True)
        self.everything_fits()
        assert not Order.objects.filter(Q(status__in=["PENDING", "PAYING"]) | ~Q(refund_requested_at=None))

    def teardown(self) -> None:
        self.settle()
        broken = {
            name: lines
            for violations in (coupon_invariants.violations, order_invariants.violations)
            for name, lines in violations()
            if lines
        }
        assert broken == {}

    def try_to(self, act: Callable[[], Any]) -> Any:
        """Do it; None if it was refused, or if the process died of it."""
        try:
            return act()
        except (DomainError, Killed):
            return None


@pytest.fixture(autouse=True)
def _provider(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    settings.PAYMENT_GATEWAY = "tests.support.gateway.MemoryGateway"


def test_money_coupons_and_events_always_fit_the_states_of_the_orders() -> None:
    run_state_machine_as_test(Shop, settings=EXAMPLES)


@pytest.mark.parametrize("end", [approve, decline, time_out])
@pytest.mark.parametrize("first", MEANWHILE, ids=lambda first: f"{first[0]}-{first[1].__name__}")
def test_a_payment_may_hang_whatever_others_do_meanwhile(first: tuple[str, Answer], end: Answer) -> None:
    for second in AFTERWARDS:
        shop = Shop()
        shop.open()
        order_id = shop.place_with_a_coupon(coupon=COUPONS[0], user_id=None, quantity=2)
        shop.pay_and_hear_late(order_id, meanwhile=[first, second], end=end)
        shop.everything_fits()
        shop.settle()
