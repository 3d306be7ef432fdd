"""Orders are placed, and read as they were placed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pytest_django import DjangoAssertNumQueries, Settings

from couponsite import settings as settings_module
from kafka_bridge.models import OutboxMessage
from orders.models import Order, Product
from tests.edge.conftest import assert_problem

from .conftest import ORDERS, Call, GiveCoupon, Place, event, time_of

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]


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


@pytest.mark.parametrize("limit", settings_module.env.limits["ORDER_PAYMENT_MINUTES"].accepted)
def test_an_order_is_placed_at_the_limits_of_its_time_for_payment(limit: str, place: Place, settings: Settings) -> None:
    settings.ORDER_PAYMENT_MINUTES = int(limit)
    order = Order.objects.get(id=place())
    # Counted from the statement before the one that inserts the row.
    assert abs(order.expires_at - order.created_at - timedelta(minutes=int(limit))) < timedelta(seconds=10)


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
