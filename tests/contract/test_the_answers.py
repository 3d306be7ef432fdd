"""The answers are those of the OpenAPI document: what the examples get, and each refusal once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from django.test import Client

from coupons.api import examples
from coupons.models import Coupon
from couponsite.auth.api import EXAMPLE_LOGIN
from couponsite.auth.tokens import ISSUE_FOR_OTHERS, issue_access_token
from kafka_bridge.outbox.backpressure import outbox_backpressure
from orders import examples as order_examples
from orders.models import Order
from tests.support.gateway import memory, time_out

from .conftest import FAR_AHEAD
from .document import Call, Document, assert_described, calls, codes

# The payment provider is never asked inside a transaction, so there is none around the tests either.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def send(client: Client, document: Document) -> Callable[..., Any]:
    """``send(operation_id, body, address=..., scope=...)``: calls as the examples' user, and checks the answer."""

    def answer_of(
        operation_id: str, body: Any = None, *, address: str = "", method: str = "",
        user: int | None = examples.USER_ID, scope: str = "", content_type: str = "application/json", **headers: str,
    ) -> Any:  # fmt: skip
        [call] = [call for call in calls(document) if call.operation["operationId"] == operation_id]
        if user is not None:
            headers["Authorization"] = f"Bearer {issue_access_token(user, scope)}"
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        response = client.generic(
            method or call.method.upper(),
            address or call.address,
            b"" if body is None else raw,
            content_type,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        assert_described(call, response)
        return response

    return answer_of


def sendable(document: Document) -> Iterator[tuple[Call, Any]]:
    """Every call with each of its example bodies, but for the refresh token: no example can be a good one."""
    for call in calls(document):
        if call.operation["operationId"] != "authTokenRefresh":
            for body in call.bodies.values() or [None]:
                yield call, body


def test_the_examples_work(cast: None, document: Document, send: Callable[..., Any]) -> None:
    for call, body in sendable(document):
        response = send(call.operation["operationId"], body, scope=ISSUE_FOR_OTHERS)
        assert response.status_code == call.success, f"{call.method} {call.path}: {response.content}"


def test_a_refresh_token_gets_the_next_access_token(cast: None, send: Callable[..., Any]) -> None:
    refresh = send("authToken", EXAMPLE_LOGIN, user=None).json()["refresh"]
    assert send("authTokenRefresh", {"refresh": refresh}, user=None).status_code == 200


def test_a_fresh_request_and_a_short_page_are_as_described(cast: None, send: Callable[..., Any]) -> None:
    accepted = send("issueById", {})
    assert send("issueRequest", address=accepted["Location"]).json()["status"] == "PENDING"
    for operation_id in ("couponList", "userCouponList"):
        page = send(operation_id, address=f"{send(operation_id).wsgi_request.path}?limit=1").json()
        assert len(page["results"]) == 1
        assert send(operation_id, address=page["next"]).json()["next"] is None


def test_an_order_is_as_described_from_its_beginning_to_its_end(cast: None, send: Callable[..., Any]) -> None:
    placed = send("orderCreate", {"items": [{"productId": order_examples.PRODUCT_ID, "quantity": 1}]})
    address = placed["Location"]
    stages = [send("order", address=address)]
    for operation_id, endpoint in (("orderPay", "pay"), ("orderCancel", "cancel")):
        assert send(operation_id, {}, address=f"{address}/{endpoint}").status_code == 200
        stages.append(send("order", address=address))
    assert [stage.json()["status"] for stage in stages] == ["PENDING", "PAID", "CANCELLED"]


def test_a_provider_that_does_not_answer_is_told_as_described(
    cast: None, send: Callable[..., Any], settings: Any
) -> None:
    settings.PAYMENT_GATEWAY = "tests.support.gateway.MemoryGateway"
    memory.reset()
    address = f"/api/v1/orders/{order_examples.CANCELLED_ORDER_ID}/pay"
    assert send("orderPay", {}, address=address).status_code == 200
    memory.answer = time_out
    assert send("orderPay", {}).json()["code"] == "unavailable"
    assert send("order").json()["status"] == "PAYING"
    assert send("orderCancel", {}).json()["code"] == "unavailable"


BY_TYPE = {"couponType": examples.COUPON_TYPE}
REFUSED: dict[str, dict[str, Any]] = {
    "invalid": {"operation_id": "issueByType", "body": {"couponType": 5}},
    "unauthenticated": {"operation_id": "issueByType", "body": BY_TYPE, "user": None},
    "forbidden": {"operation_id": "issueByType", "body": BY_TYPE | {"userId": examples.USER_ID + 1}},
    "not_found": {"operation_id": "issueByType", "body": {"couponType": "NOWHERE"}},
    "method_not_allowed": {"operation_id": "issueByType", "method": "PUT"},
    "not_open": {"operation_id": "issueById", "address": f"/api/v1/coupons/{examples.COUPON_ID + 1}/issue-async"},
    "too_large": {"operation_id": "issueByType", "body": b" " * 20_000},
    "unsupported_media_type": {"operation_id": "issueByType", "body": b"a=1", "content_type": "text/plain"},
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refusal_is_as_described(cast: None, send: Callable[..., Any], code: str) -> None:
    assert send(**REFUSED[code]).json()["code"] == code


def test_a_coupon_that_cannot_be_used_is_refused_as_described(cast: None, send: Callable[..., Any]) -> None:
    body = {
        "items": [{"productId": order_examples.PRODUCT_ID, "quantity": 1}],
        "userCouponId": examples.USER_COUPON_ID + 1,
    }
    assert send("orderCreate", body).json()["code"] == "coupon_not_usable"


def test_an_order_in_another_state_is_refused_as_described(cast: None, send: Callable[..., Any]) -> None:
    Order.objects.update(status="EXPIRED")
    assert send("orderPay", {}).json()["code"] == "invalid_state"
    assert send("orderCancel", {}).json()["code"] == "invalid_state"


def test_an_order_that_is_being_paid_is_refused_as_described(cast: None, send: Callable[..., Any]) -> None:
    Order.objects.update(status="PAYING", paying_until=FAR_AHEAD)
    assert send("orderPay", {}).json()["code"] == "in_progress"
    assert send("orderCancel", {}).json()["code"] == "in_progress"


def test_a_key_used_again_for_something_else_is_refused_as_described(
    cast: None, closed_coupon: Coupon, send: Callable[..., Any]
) -> None:
    assert send("issueById", {}, Idempotency_Key="key").status_code == 202
    other = send("issueById", {}, address=f"/api/v1/coupons/{closed_coupon.pk}/issue-async", Idempotency_Key="key")
    assert other.json()["code"] == "idempotency_key_reused"
    items = [{"productId": order_examples.PRODUCT_ID, "quantity": 1}]
    assert send("orderCreate", {"items": items}, Idempotency_Key="key").status_code == 201
    again = send("orderCreate", {"items": items * 2}, Idempotency_Key="key")
    assert again.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("admission", ["gate", "reserve"])
def test_who_comes_too_late_or_twice_is_refused_as_described(
    cast: None, redis_flushed: None, send: Callable[..., Any], admission: str
) -> None:
    # One of the two is that of the examples' user.
    Coupon.objects.filter(pk=examples.COUPON_ID).update(admission=admission, total_quantity=2, issued=1)
    accepted, again = send("issueById", {}, user=5), send("issueById", {}, user=5)
    assert accepted.json()["sequence"] >= 1
    assert again.json()["code"] == "already_issued"
    assert send("issueById", {}, user=6).json()["code"] == "sold_out"


def test_too_many_logins_are_refused_as_described(cast: None, send: Callable[..., Any], settings: Any) -> None:
    settings.AUTH_TOKEN_THROTTLE = (0, 60)
    assert send("authToken", EXAMPLE_LOGIN, user=None).json()["code"] == "throttled"


def test_an_outbox_far_behind_is_told_as_described(
    cast: None, send: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_backpressure, "refusal", lambda: "The outbox is far behind.")
    assert send("issueById", {}).json()["code"] == "unavailable"


def test_every_code_is_provoked_here(document: Document) -> None:
    others = {
        "idempotency_key_reused", "sold_out", "already_issued", "throttled", "unavailable", "coupon_not_usable",
        "invalid_state", "in_progress",
        # Answered by the intake, see tests/intake/test_clients.py.
        "timeout",
    }  # fmt: skip
    assert codes(document) == REFUSED.keys() | others
