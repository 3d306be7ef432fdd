"""Orders are paid once and cancelled once, whatever the provider answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coupons.models import Coupon
from kafka_bridge.models import OutboxMessage
from orders.models import Order, Product
from tests.edge.conftest import assert_problem
from tests.support.gateway import Memory, approve, decline, move_and_time_out
from tests.support.threads import in_another_session

from .conftest import ALICE, LONG_AGO, ORDERS, Call, GiveCoupon, Pause, Place, event, time_of

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


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
