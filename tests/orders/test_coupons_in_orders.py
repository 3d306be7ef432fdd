"""What a coupon takes off an order, and which coupons an order may hold."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import IntegrityError

from coupons.models import UserCoupon
from orders.models import Order, Product
from orders.services import placing
from orders.services.placing import OrderItemInput, order_create
from tests.edge.conftest import assert_problem
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import ALICE, BOB, LONG_AGO, ORDERS, Call, GiveCoupon, Place

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]


@pytest.mark.parametrize(
    ("coupon", "price", "off"),
    [
        ({"discount_type": "PERCENT", "discount_value": 10}, 9_999, 999),
        ({"discount_type": "PERCENT", "discount_value": 33}, 100, 33),
        ({"discount_type": "PERCENT", "discount_value": 1}, 199, 1),
        ({"discount_type": "PERCENT", "discount_value": 100}, 12_345, 12_345),
        ({"discount_type": "PERCENT", "discount_value": 50, "discount_cap": 3_000}, 6_001, 3_000),
        ({"discount_type": "PERCENT", "discount_value": 50, "discount_cap": 3_000}, 5_999, 2_999),
        # Floats would be a won off.
        ({"discount_type": "PERCENT", "discount_value": 7}, 10**15 - 1, 69_999_999_999_999),
        ({"discount_type": "FIXED", "discount_value": 3_000}, 10_000, 3_000),
        ({"discount_type": "FIXED", "discount_value": 3_000}, 2_500, 2_500),
        ({"discount_type": "FIXED", "discount_value": 2**63 - 1}, 10**15, 10**15),
        ({"discount_type": "FIXED", "discount_value": 500, "min_order_amount": 2_000}, 2_000, 500),
    ],
)
def test_a_coupon_takes_off_whole_won_and_never_more_than_the_order(
    call: Call, give_coupon: GiveCoupon, coupon: dict[str, Any], price: int, off: int
) -> None:
    product = Product.objects.create(name="Thing", price=price)
    mine = give_coupon(**coupon)
    items = [{"productId": product.id, "quantity": 1}]
    body = call("POST", ORDERS, {"items": items, "userCouponId": mine.id}).json()
    assert (body["totalAmount"], body["discountAmount"], body["payAmount"]) == (price, off, price - off)
    assert body["userCouponId"] == mine.id
    assert call("GET", f"{ORDERS}/{body['orderId']}").json()["payAmount"] == price - off
    mine.refresh_from_db()
    assert mine.status == "HELD"


@pytest.mark.parametrize(
    ("coupon", "price", "reason"),
    [
        ({"discount_type": "PERCENT", "discount_value": 10}, 9, "10 % of 9 won is less than 1 won"),
        ({"discount_type": "PERCENT", "discount_value": 1, "discount_cap": 5}, 99, "1 % of 99 won is less than 1 won"),
        ({"discount_type": "PERCENT", "discount_value": 100}, 0, "costs 0 won"),
        ({"discount_type": "FIXED", "discount_value": 500}, 0, "costs 0 won"),
    ],
)
def test_a_coupon_that_takes_nothing_off_is_not_used_up(
    call: Call, give_coupon: GiveCoupon, coupon: dict[str, Any], price: int, reason: str
) -> None:
    product = Product.objects.create(name="Thing", price=price)
    mine = give_coupon(**coupon)
    items = [{"productId": product.id, "quantity": 1}]
    answer = call("POST", ORDERS, {"items": items, "userCouponId": mine.id})
    assert (answer.status_code, answer.json()["code"]) == (409, "coupon_not_usable")
    assert reason in answer.json()["detail"]
    mine.refresh_from_db()
    assert mine.status == "ISSUED"
    assert not Order.objects.exists()
    assert call("POST", ORDERS, {"items": items}).status_code == 201


def test_the_least_amount_of_a_coupon_is_that_of_all_lines_together(
    place: Place, give_coupon: GiveCoupon, call: Call
) -> None:
    mine = give_coupon(min_order_amount=25_800)
    order_id = place(quantity=2, userCouponId=mine.id)
    assert call("GET", f"{ORDERS}/{order_id}").json()["discountAmount"] == 2_580


NOT_USABLE: dict[str, dict[str, Any]] = {
    "another user's": {"user_id": BOB},
    "held by another order": {"status": "HELD"},
    "used": {"status": "USED"},
    "taken back": {"status": "REVOKED"},
    "expired": {"expires_at": LONG_AGO},
    "for larger orders": {"min_order_amount": 12_901},
}


@pytest.mark.parametrize("given", NOT_USABLE.values(), ids=NOT_USABLE.keys())
def test_a_coupon_that_cannot_be_used_is_refused_and_nothing_is_written(
    call: Call, socks: Product, give_coupon: GiveCoupon, given: dict[str, Any]
) -> None:
    coupon = give_coupon(**given)
    before = UserCoupon.objects.values().get()
    items = [{"productId": socks.id, "quantity": 1}]
    assert_problem(call("POST", ORDERS, {"items": items, "userCouponId": coupon.id}), 409, "coupon_not_usable")
    assert UserCoupon.objects.values().get() == before
    assert not Order.objects.exists()


def test_somebody_elses_coupon_reads_like_none(call: Call, socks: Product, give_coupon: GiveCoupon) -> None:
    bobs = give_coupon(BOB)
    items = [{"productId": socks.id, "quantity": 1}]
    answers = [call("POST", ORDERS, {"items": items, "userCouponId": key}) for key in (bobs.id, bobs.id + 1)]
    assert answers[0].json() == answers[1].json()
    assert_problem(answers[0], 409, "coupon_not_usable")


def test_a_coupon_is_free_again_after_the_order_that_held_it(
    call: Call, place: Place, socks: Product, give_coupon: GiveCoupon
) -> None:
    mine = give_coupon()
    order_id = place(userCouponId=mine.id)
    items = [{"productId": socks.id, "quantity": 1}]
    assert_problem(call("POST", ORDERS, {"items": items, "userCouponId": mine.id}), 409, "coupon_not_usable")
    call("POST", f"{ORDERS}/{order_id}/cancel")
    assert place(userCouponId=mine.id) != order_id


@pytest.mark.parametrize("first_ends", ["commit", "rollback"])
def test_of_two_orders_at_once_one_holds_the_coupon(
    call: Call, socks: Product, give_coupon: GiveCoupon, first_ends: str
) -> None:
    mine = give_coupon()
    body = {"items": [{"productId": socks.id, "quantity": 1}], "userCouponId": mine.id}
    with OpenTransaction(
        lambda: order_create(user_id=ALICE, items=[OrderItemInput(socks.id, 1)], user_coupon_id=mine.id)
    ) as first:
        second = in_another_session(lambda: call("POST", ORDERS, body))
        wait_until_blocked(beside=second)
        getattr(first, first_ends)()
        answer = second.result(10)
    if first_ends == "commit":
        assert_problem(answer, 409, "coupon_not_usable")
    else:
        assert answer.status_code == 201
    assert [order.user_coupon_id for order in Order.objects.all()] == [mine.id]


def test_a_coupon_that_is_looked_at_before_it_is_held_would_be_in_two_orders(
    socks: Product, give_coupon: GiveCoupon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_then_hold(*, user_coupon_id: int, **_order: int) -> int:
        assert UserCoupon.objects.get(id=user_coupon_id).status == "ISSUED"
        UserCoupon.objects.filter(id=user_coupon_id).update(status="HELD")
        return 0

    mine = give_coupon()
    monkeypatch.setattr(placing, "coupon_hold", look_then_hold)

    def place() -> Any:
        return order_create(user_id=ALICE, items=[OrderItemInput(socks.id, 1)], user_coupon_id=mine.id)

    with OpenTransaction(place) as first:
        second = in_another_session(place)
        wait_until_blocked(beside=second)
        first.commit()
        # Only the constraint behind it refuses, and the client would be told of an error of ours.
        with pytest.raises(IntegrityError, match="one_order_per_coupon"):
            second.result(10)


@pytest.mark.parametrize("coupon", [{}, {"userCouponId": None}], ids=["absent", "null"])
def test_an_order_needs_no_coupon(place: Place, coupon: dict[str, None]) -> None:
    place(**coupon)
    assert Order.objects.get().user_coupon_id is None
