"""Orders from the outside: placed, paid once, cancelled, looked at, and what a client is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from coupons.models import Coupon, UserCoupon
from couponsite import settings as settings_module
from kafka_bridge.models import OutboxMessage
from orders.models import Order, Product
from orders.services import placing
from orders.services.placing import OrderItemInput, order_create
from tests.edge.conftest import assert_problem
from tests.support.gateway import Memory, approve, decline, move_and_time_out
from tests.support.threads import OpenTransaction, in_another_session, wait_until_blocked

from .conftest import ALICE, BOB, ORDERS, Call, GiveCoupon, Pause

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]

Place = Callable[..., int]

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2120, 1, 1, tzinfo=UTC)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def time_of(text: str) -> datetime:
    """A time as the API tells it."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text)
    return datetime.fromisoformat(text)


def event(event_type: str) -> dict[str, Any]:
    """The body of the only event of this type."""
    row = OutboxMessage.objects.get(event_type=event_type)
    body: dict[str, Any] = json.loads(bytes(row.payload or b""))
    assert bytes(row.key or b"") == str(body["orderId"]).encode()
    return body


# Placing


def test_a_placed_order_waits_for_its_payment(call: Call, socks: Product) -> None:
    before = datetime.now(UTC)
    answer = call("POST", ORDERS, {"items": [{"productId": socks.id, "quantity": 3}]})
    assert (answer.status_code, answer["Content-Type"]) == (201, "application/json")
    body = answer.json()
    assert answer["Location"] == f"{ORDERS}/{body['orderId']}"
    expires_at = time_of(body.pop("expiresAt"))
    assert timedelta(minutes=29) < expires_at - before < timedelta(minutes=31)
    assert body == {
        "orderId": body["orderId"],
        "status": "PENDING",
        "items": [{"productId": socks.id, "name": "Wool socks", "quantity": 3, "unitPrice": 12_900}],
        "totalAmount": 38_700,
        "discountAmount": 0,
        "payAmount": 38_700,
        "userCouponId": None,
    }
    assert not OutboxMessage.objects.exists()


def test_an_order_reads_as_it_was_placed(call: Call, socks: Product) -> None:
    placed = call("POST", ORDERS, {"items": [{"productId": socks.id, "quantity": 3}]})
    read = call("GET", placed["Location"])
    assert read.status_code == 200
    assert read.json() == placed.json() | {"paidAt": None, "cancelledAt": None}


def test_an_order_keeps_the_name_and_price_that_it_was_placed_at(call: Call, place: Place, socks: Product) -> None:
    order_id = place()
    Product.objects.filter(id=socks.id).update(name="Silk socks", price=99_000)
    [item] = call("GET", f"{ORDERS}/{order_id}").json()["items"]
    assert (item["name"], item["unitPrice"]) == ("Wool socks", 12_900)
    call("POST", f"{ORDERS}/{order_id}/pay")
    assert event("order.completed.v1")["payAmount"] == 12_900


def test_lines_keep_their_order_and_a_product_may_be_in_two_of_them(call: Call, socks: Product) -> None:
    hat = Product.objects.create(name="Hat", price=5)
    wishes = [(hat.id, 2), (socks.id, 1), (hat.id, 1)]
    answer = call("POST", ORDERS, {"items": [{"productId": product, "quantity": many} for product, many in wishes]})
    items = answer.json()["items"]
    assert [(item["productId"], item["quantity"]) for item in items] == wishes
    assert answer.json()["totalAmount"] == 12_915
    assert call("GET", answer["Location"]).json()["items"] == items


def test_an_order_has_at_most_100_lines_of_10000_pieces(call: Call, socks: Product) -> None:
    line = {"productId": socks.id, "quantity": 10_000}
    assert call("POST", ORDERS, {"items": [line] * 100}).json()["totalAmount"] == 100 * 10_000 * 12_900
    assert_problem(call("POST", ORDERS, {"items": [line] * 101}), 400, "invalid")
    assert_problem(call("POST", ORDERS, {"items": [line | {"quantity": 10_001}]}), 400, "invalid")
    assert Order.objects.count() == 1


def test_a_sum_past_what_can_be_stored_is_refused(call: Call) -> None:
    gold = Product.objects.create(name="Gold", price=10**15)
    answer = call("POST", ORDERS, {"items": [{"productId": gold.id, "quantity": 2}]})
    assert "too large" in assert_problem(answer, 400, "invalid")["detail"]
    assert not Order.objects.exists()
    assert call("POST", ORDERS, {"items": [{"productId": gold.id, "quantity": 1}]}).json()["payAmount"] == 10**15


def test_a_product_that_there_is_not_is_named_and_the_coupon_stays_free(
    call: Call, socks: Product, give_coupon: GiveCoupon
) -> None:
    mine = give_coupon()
    items = [{"productId": socks.id, "quantity": 1}, {"productId": 987_654, "quantity": 1}]
    problem = assert_problem(call("POST", ORDERS, {"items": items, "userCouponId": mine.id}), 404, "not_found")
    assert "987654" in problem["detail"]
    mine.refresh_from_db()
    assert (mine.status, Order.objects.count()) == ("ISSUED", 0)


# What a coupon takes off


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


@pytest.mark.parametrize("limit", settings_module.env.limits["ORDER_PAYMENT_MINUTES"].accepted)
def test_an_order_is_placed_at_the_limits_of_its_time_for_payment(limit: str, place: Place, settings: Settings) -> None:
    settings.ORDER_PAYMENT_MINUTES = int(limit)
    order = Order.objects.get(id=place())
    # Counted from the statement before the one that inserts the row.
    assert abs(order.expires_at - order.created_at - timedelta(minutes=int(limit))) < timedelta(seconds=10)


def test_the_least_amount_of_a_coupon_is_that_of_all_lines_together(
    place: Place, give_coupon: GiveCoupon, call: Call
) -> None:
    mine = give_coupon(min_order_amount=25_800)
    order_id = place(quantity=2, userCouponId=mine.id)
    assert call("GET", f"{ORDERS}/{order_id}").json()["discountAmount"] == 2_580


NOT_USABLE: dict[str, dict[str, Any]] = {
    "somebody else's": {"user_id": BOB},
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


# Paying


def test_a_paid_order_is_told_of_once_however_often_it_is_paid(
    call: Call, place: Place, give_coupon: GiveCoupon, provider: Memory, socks: Product
) -> None:
    mine = give_coupon()
    order_id = place(quantity=2, userCouponId=mine.id)
    first = call("POST", f"{ORDERS}/{order_id}/pay", {})
    assert (first.status_code, first["Content-Type"]) == (200, "application/json")
    assert first.json() == {"orderId": order_id, "status": "PAID", "paidAt": first.json()["paidAt"]}
    for again in (call("POST", f"{ORDERS}/{order_id}/pay"), call("POST", f"{ORDERS}/{order_id}/pay", {})):
        assert (again.status_code, again.content) == (200, first.content)
    told = event("order.completed.v1")
    assert time_of(told["paidAt"]) == time_of(first.json()["paidAt"])
    assert told == {
        "orderId": order_id,
        "userId": ALICE,
        "items": [{"productId": socks.id, "name": "Wool socks", "quantity": 2, "unitPrice": 12_900}],
        "totalAmount": 25_800,
        "discountAmount": 2_580,
        "payAmount": 23_220,
        "userCouponId": mine.id,
        "paidAt": told["paidAt"],
    }
    assert provider.books.kept(order_id) == 23_220
    assert len(provider.books.calls) == 1
    mine.refresh_from_db()
    assert (mine.status, mine.used_at is None) == ("USED", False)
    read = call("GET", f"{ORDERS}/{order_id}").json()
    assert (read["status"], read["paidAt"], read["cancelledAt"]) == ("PAID", first.json()["paidAt"], None)


def test_an_order_that_a_coupon_makes_free_is_paid_without_the_provider(
    call: Call, place: Place, give_coupon: GiveCoupon, provider: Memory
) -> None:
    order_id = place(userCouponId=give_coupon(discount_value=100).id)
    assert call("POST", f"{ORDERS}/{order_id}/pay").status_code == 200
    assert provider.books.calls == []
    assert event("order.completed.v1")["payAmount"] == 0


@pytest.mark.parametrize("call_name", ["pay", "cancel"])
def test_a_trace_goes_along_and_there_is_always_one(call: Call, place: Place, call_name: str) -> None:
    event_type = {"pay": "order.completed.v1", "cancel": "order.cancelled.v1"}[call_name]
    traces = []
    for headers in ({"traceparent": TRACE}, {"traceparent": "nonsense"}, {}):
        order_id = place()
        if call_name == "cancel":
            call("POST", f"{ORDERS}/{order_id}/pay")
        assert call("POST", f"{ORDERS}/{order_id}/{call_name}", **headers).status_code == 200
        traces.append(OutboxMessage.objects.filter(event_type=event_type).latest("id").traceparent)
    assert traces[0] == TRACE
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace) for trace in traces)
    assert len(set(traces)) == 3


def test_a_declined_payment_is_refused_and_may_be_tried_again(call: Call, place: Place, provider: Memory) -> None:
    order_id = place()
    provider.answer = decline
    problem = assert_problem(call("POST", f"{ORDERS}/{order_id}/pay"), 409, "invalid_state")
    assert "not enough money" in problem["detail"]
    assert call("GET", f"{ORDERS}/{order_id}").json()["status"] == "PENDING"
    provider.answer = approve
    assert call("POST", f"{ORDERS}/{order_id}/pay").status_code == 200


def test_a_provider_that_does_not_answer_is_503_and_takes_the_money_once(
    call: Call, place: Place, provider: Memory
) -> None:
    order_id = place()
    provider.answer = move_and_time_out
    for _ in range(2):
        refused = call("POST", f"{ORDERS}/{order_id}/pay")
        assert_problem(refused, 503, "unavailable")
        assert int(refused["Retry-After"]) >= 1
        assert call("GET", f"{ORDERS}/{order_id}").json()["status"] == "PAYING"
    provider.answer = approve
    assert call("POST", f"{ORDERS}/{order_id}/pay").status_code == 200
    assert (provider.books.charges(order_id), provider.books.kept(order_id)) == (1, 12_900)
    assert OutboxMessage.objects.count() == 1


def test_while_a_payment_is_under_way_the_order_is_left_alone(
    call: Call, place: Place, provider: Memory, pause: Pause
) -> None:
    order_id = place()
    paying = in_another_session(lambda: call("POST", f"{ORDERS}/{order_id}/pay"))
    assert pause.begun.wait(10)
    for action in ("pay", "cancel"):
        refused = call("POST", f"{ORDERS}/{order_id}/{action}")
        assert_problem(refused, 409, "in_progress")
        assert int(refused["Retry-After"]) >= 1
    assert call("GET", f"{ORDERS}/{order_id}").json()["status"] == "PAYING"
    pause.end()
    assert paying.result(10).status_code == 200
    assert (len(provider.books.calls), OutboxMessage.objects.count()) == (1, 1)


@pytest.mark.parametrize(
    "after",
    [{"status": "CANCELLED"}, {"status": "EXPIRED"}, {"expires_at": LONG_AGO}],
    ids=["cancelled", "expired", "past its time"],
)
def test_an_order_that_has_ended_is_not_paid(call: Call, place: Place, provider: Memory, after: dict[str, Any]) -> None:
    order_id = place()
    Order.objects.update(**after)
    assert_problem(call("POST", f"{ORDERS}/{order_id}/pay"), 409, "invalid_state")
    assert (provider.books.calls, OutboxMessage.objects.count()) == ([], 0)


# Cancelling


def test_an_unpaid_order_is_cancelled_without_an_event(
    call: Call, place: Place, give_coupon: GiveCoupon, provider: Memory
) -> None:
    mine = give_coupon()
    order_id = place(userCouponId=mine.id)
    first = call("POST", f"{ORDERS}/{order_id}/cancel", {})
    assert first.status_code == 200
    cancelled_at = first.json()["cancelledAt"]
    assert first.json() == {"orderId": order_id, "status": "CANCELLED", "cancelledAt": cancelled_at}
    again = call("POST", f"{ORDERS}/{order_id}/cancel")
    assert (again.status_code, again.content) == (200, first.content)
    mine.refresh_from_db()
    assert (mine.status, mine.used_at) == ("ISSUED", None)
    assert (provider.books.calls, OutboxMessage.objects.count()) == ([], 0)
    read = call("GET", f"{ORDERS}/{order_id}").json()
    assert (read["status"], read["paidAt"], time_of(read["cancelledAt"])) == ("CANCELLED", None, time_of(cancelled_at))
    assert_problem(call("POST", f"{ORDERS}/{order_id}/pay"), 409, "invalid_state")


@pytest.mark.parametrize(
    ("policy", "status", "issued"),
    [("RETURN_TO_USER", "ISSUED", 1), ("RETURN_TO_POOL", "REVOKED", 0), ("BURN", "USED", 1)],
)
def test_of_a_paid_order_money_and_coupon_go_back_once(
    call: Call, place: Place, give_coupon: GiveCoupon, provider: Memory, policy: str, status: str, issued: int
) -> None:
    mine = give_coupon(refund_policy=policy)
    order_id = place(userCouponId=mine.id)
    paid = call("POST", f"{ORDERS}/{order_id}/pay").json()
    first = call("POST", f"{ORDERS}/{order_id}/cancel")
    assert first.status_code == 200
    again = call("POST", f"{ORDERS}/{order_id}/cancel")
    assert (again.status_code, again.content) == (200, first.content)
    told = event("order.cancelled.v1")
    assert told.keys() == {"orderId", "userId", "items", "paidAt", "cancelledAt"}
    assert (told["orderId"], told["userId"], told["paidAt"]) == (order_id, ALICE, paid["paidAt"])
    assert told["cancelledAt"] == first.json()["cancelledAt"]
    assert provider.books.kept(order_id) == 0
    assert len(provider.books.calls) == 2
    mine.refresh_from_db()
    assert mine.status == status
    assert Coupon.objects.get().issued == issued
    assert_problem(call("POST", f"{ORDERS}/{order_id}/pay"), 409, "invalid_state")


def test_an_expired_order_is_not_cancelled(call: Call, place: Place) -> None:
    order_id = place()
    Order.objects.update(status="EXPIRED")
    assert_problem(call("POST", f"{ORDERS}/{order_id}/cancel"), 409, "invalid_state")
    assert call("GET", f"{ORDERS}/{order_id}").json()["status"] == "EXPIRED"


def test_a_refund_without_answer_is_503_and_the_next_cancel_finishes_it(
    call: Call, place: Place, provider: Memory
) -> None:
    order_id = place()
    call("POST", f"{ORDERS}/{order_id}/pay")
    provider.answer = move_and_time_out
    refused = call("POST", f"{ORDERS}/{order_id}/cancel")
    assert_problem(refused, 503, "unavailable")
    assert int(refused["Retry-After"]) >= 1
    assert call("GET", f"{ORDERS}/{order_id}").json()["status"] == "PAID"
    provider.answer = approve
    assert call("POST", f"{ORDERS}/{order_id}/cancel").json()["status"] == "CANCELLED"
    assert [call.kind for call in provider.books.moved.values()] == ["charge", "refund"]
    assert provider.books.kept(order_id) == 0


# What it costs


def test_an_order_of_many_lines_takes_no_more_queries_than_one_of_one(
    call: Call, socks: Product, give_coupon: GiveCoupon, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    products = [socks, *(Product.objects.create(name=str(n), price=n) for n in range(99))]
    items = [{"productId": product.id, "quantity": 1} for product in products]
    for lines in (items[:1], items):
        body = {"items": lines, "userCouponId": give_coupon().id}
        with django_assert_num_queries(14):
            placed = call("POST", ORDERS, body, Idempotency_Key=f"of {len(lines)}")
        path = placed["Location"]
        # Two transactions, with the provider between them.
        with django_assert_num_queries(18):
            assert call("POST", f"{path}/pay", Idempotency_Key=f"of {len(lines)}").status_code == 200
        with django_assert_num_queries(2):
            assert len(call("GET", path).json()["items"]) == len(lines)


# Whose orders


@pytest.mark.parametrize(("method", "action"), [("GET", ""), ("POST", "/pay"), ("POST", "/cancel")])
@pytest.mark.parametrize("scope", ["", "coupons:issue-for-others"])
def test_somebody_elses_order_reads_like_one_that_does_not_exist(
    call: Call, place: Place, provider: Memory, method: str, action: str, scope: str
) -> None:
    order_id = place(user=ALICE)
    theirs = assert_problem(call(method, f"{ORDERS}/{order_id}{action}", user=BOB, scope=scope), 404, "not_found")
    nobodys = assert_problem(call(method, f"{ORDERS}/{order_id + 1}{action}", user=BOB, scope=scope), 404, "not_found")
    assert theirs["detail"].replace(str(order_id), "N") == nobodys["detail"].replace(str(order_id + 1), "N")
    assert (Order.objects.get().status, provider.books.calls) == ("PENDING", [])


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ORDERS), ("GET", f"{ORDERS}/1"), ("POST", f"{ORDERS}/1/pay"), ("POST", f"{ORDERS}/1/cancel")],
)
def test_without_a_token_there_are_no_orders(call: Call, method: str, path: str) -> None:
    assert_problem(call(method, path, user=None), 401, "unauthenticated")


def test_a_session_orders_for_its_own_user_and_needs_its_csrf_token(socks: Product) -> None:
    carol = User.objects.create_user("carol")
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(carol)
    browser.cookies["csrftoken"] = "a" * 32
    body = {"items": [{"productId": socks.id, "quantity": 1}]}
    assert_problem(browser.post(ORDERS, body, "application/json"), 403, "forbidden")
    path = browser.post(ORDERS, body, "application/json", HTTP_X_CSRFTOKEN="a" * 32)["Location"]
    for step in ("pay", "cancel"):
        assert_problem(browser.post(f"{path}/{step}", content_type="application/json"), 403, "forbidden")
        answer = browser.post(f"{path}/{step}", content_type="application/json", HTTP_X_CSRFTOKEN="a" * 32)
        assert answer.status_code == 200
    assert list(Order.objects.values_list("user_id", "status")) == [(carol.pk, "CANCELLED")]


# What else a client can send

BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no object": b'[{"productId":1,"quantity":1}]',
    "no items": b"{}",
    "empty items": b'{"items":[]}',
    "items null": b'{"items":null}',
    "items an object": b'{"items":{"productId":1,"quantity":1}}',
    "an item null": b'{"items":[null]}',
    "an item a number": b'{"items":[1]}',
    "no quantity": b'{"items":[{"productId":1}]}',
    "no product": b'{"items":[{"quantity":1}]}',
    "quantity 0": b'{"items":[{"productId":1,"quantity":0}]}',
    "quantity below 0": b'{"items":[{"productId":1,"quantity":-1}]}',
    "quantity a whole float": b'{"items":[{"productId":1,"quantity":1.0}]}',
    "quantity a float": b'{"items":[{"productId":1,"quantity":1.5}]}',
    "quantity with an exponent": b'{"items":[{"productId":1,"quantity":1e2}]}',
    "quantity a boolean": b'{"items":[{"productId":1,"quantity":true}]}',
    "quantity a text": b'{"items":[{"productId":1,"quantity":"1"}]}',
    "quantity null": b'{"items":[{"productId":1,"quantity":null}]}',
    "quantity NaN": b'{"items":[{"productId":1,"quantity":NaN}]}',
    "quantity past 64 bits": b'{"items":[{"productId":1,"quantity":9223372036854775808}]}',
    "quantity of 5000 digits": b'{"items":[{"productId":1,"quantity":' + b"9" * 5000 + b"}]}",
    "product 0": b'{"items":[{"productId":0,"quantity":1}]}',
    "product a boolean": b'{"items":[{"productId":true,"quantity":1}]}',
    "product a whole float": b'{"items":[{"productId":1.0,"quantity":1}]}',
    "product past 64 bits": b'{"items":[{"productId":9223372036854775808,"quantity":1}]}',
    "product a text": b'{"items":[{"productId":"1","quantity":1}]}',
    "a price of one's own": b'{"items":[{"productId":1,"quantity":1,"unitPrice":1}]}',
    "a user of one's own": b'{"items":[{"productId":1,"quantity":1}],"userId":5}',
    "a name with NUL": rb'{"items":[{"productId":1,"quantity":1}],"user\u0000CouponId":5}',
    "a lone surrogate": rb'{"items":[{"productId":"\ud800","quantity":1}]}',
    "a name twice": b'{"items":[{"productId":1,"quantity":1,"quantity":2}]}',
    "items twice": b'{"items":[{"productId":1,"quantity":1}],"items":[]}',
    "snake case": b'{"items":[{"product_id":1,"quantity":1}]}',
    "coupon 0": b'{"items":[{"productId":1,"quantity":1}],"userCouponId":0}',
    "coupon a boolean": b'{"items":[{"productId":1,"quantity":1}],"userCouponId":true}',
    "coupon a whole float": b'{"items":[{"productId":1,"quantity":1}],"userCouponId":1.0}',
    "coupon a text": b'{"items":[{"productId":1,"quantity":1}],"userCouponId":"1"}',
    "coupon past 64 bits": b'{"items":[{"productId":1,"quantity":1}],"userCouponId":9223372036854775808}',
    "nesting past 32": b'{"items":' + b"[" * 32 + b"]" * 32 + b"}",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_places_no_order(call: Call, body: bytes) -> None:
    Product.objects.create(id=1, name="Wool socks", price=12_900)
    assert_problem(call("POST", ORDERS, body), 400, "invalid")
    assert not Order.objects.exists()


def test_a_refusal_names_the_field(call: Call) -> None:
    answer = call("POST", ORDERS, {"items": [{"productId": 1, "quantity": "x"}]})
    assert assert_problem(answer, 400, "invalid")["errors"][0]["field"] == "items[0].quantity"


@pytest.mark.parametrize("coupon", [{}, {"userCouponId": None}], ids=["absent", "null"])
def test_an_order_needs_no_coupon(place: Place, coupon: dict[str, None]) -> None:
    place(**coupon)
    assert Order.objects.get().user_coupon_id is None


@pytest.mark.parametrize("action", ["pay", "cancel"])
@pytest.mark.parametrize("body", [b'{"amount":1}', b"[]", b"null", b"{", rb'{"a\u0000":1}'])
def test_paying_and_cancelling_take_no_fields(call: Call, place: Place, action: str, body: bytes) -> None:
    order_id = place()
    assert_problem(call("POST", f"{ORDERS}/{order_id}/{action}", body), 400, "invalid")
    assert Order.objects.get().status == "PENDING"


@pytest.mark.parametrize("order", ["0", "-1", "9223372036854775807", "9223372036854775808", "9" * 400, "x", "1%00"])
def test_what_is_no_order_is_404(call: Call, order: str) -> None:
    for method, action in (("GET", ""), ("POST", "/pay"), ("POST", "/cancel")):
        assert_problem(call(method, f"{ORDERS}/{order}{action}"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(ORDERS, "POST"), (f"{ORDERS}/1", "GET, HEAD"), (f"{ORDERS}/1/pay", "POST"), (f"{ORDERS}/1/cancel", "POST")],
)
def test_another_method_is_405_and_names_the_right_one(call: Call, path: str, allowed: str) -> None:
    answer = call("DELETE", path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer["Allow"] == allowed
