"""Whose orders a client reaches, and what else a client can send."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client

from orders.models import Order, Product
from tests.edge.conftest import assert_problem
from tests.support.gateway import Memory

from .conftest import ALICE, BOB, ORDERS, Call, Place

# The provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("provider")]


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
