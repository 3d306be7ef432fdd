"""The issue endpoints: what they answer, what it costs, and what is written."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon
from kafka_bridge.models import OutboxMessage

pytestmark = pytest.mark.django_db

MakeCoupon = Callable[..., Coupon]
Token = Callable[..., dict[str, str]]


def post(client: Client, path: str, body: object, headers: dict[str, str]) -> Any:
    return client.post(path, json.dumps(body), content_type="application/json", headers=headers)


ENDPOINTS: dict[str, Callable[[Coupon], tuple[str, dict[str, Any]]]] = {
    "by type": lambda c: ("/api/v1/coupons/issue-async", {"couponType": c.coupon_type}),
    "by id": lambda c: (f"/api/v1/coupons/{c.id}/issue-async", {}),
    "for a user": lambda c: (f"/api/v1/users/7/coupons/{c.id}/issue", {}),
    "the seed's, by type": lambda c: ("/coupons/issue-async", {"couponType": c.coupon_type, "userId": 7}),
    "the seed's, by id": lambda c: (f"/coupons/{c.id}/issue-async", {"userId": 7}),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_request_is_accepted_at_every_endpoint(
    endpoint: str, client: Client, make_coupon: MakeCoupon, token: Token
) -> None:
    coupon = make_coupon()
    path, body = ENDPOINTS[endpoint](coupon)
    response = post(client, path, body, token(7))
    assert response.status_code == 202
    answer = response.json()
    assert answer | {"requestId": ...} == {
        "requestId": ...,
        "status": "PENDING",
        "couponId": coupon.id,
        "couponType": coupon.coupon_type,
        "userId": 7,
        "sequence": None,
    }
    assert response["Location"] == f"/api/v1/issue-requests/{answer['requestId']}"
    assert response["Retry-After"] == "1"


def test_the_request_is_its_outbox_row(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    coupon = make_coupon()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = post(client, f"/api/v1/coupons/{coupon.id}/issue-async", {}, token(7) | {"traceparent": trace})
    row = OutboxMessage.objects.get()
    assert str(row.event_id) == response.json()["requestId"]
    assert row.event_id.version == 7
    assert (row.topic, bytes(row.key or b""), row.traceparent) == (
        "coupon-issue-request",
        coupon.coupon_type.encode(),
        trace,
    )
    body = json.loads(bytes(row.payload or b""))
    assert body | {"requestedAt": ...} == {
        "requestId": str(row.event_id),
        "userId": 7,
        "couponId": coupon.id,
        "couponType": coupon.coupon_type,
        "requestedAt": ...,
        "source": "API",
        "admission": "queue",
        "sequence": None,
    }


def test_an_accepted_request_costs_one_insert_and_nothing_for_authentication(
    client: Client,
    make_coupon: MakeCoupon,
    token: Token,
    django_assert_num_queries: DjangoAssertNumQueries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A busy machine may take longer than the cache's second from here to the request.
    monkeypatch.setattr("coupons.coupon_cache._MAX_AGE", 60.0)
    coupon = make_coupon()
    path, body = ENDPOINTS["by type"](coupon)
    coupon_cache.get(coupon.coupon_type)
    with django_assert_num_queries(3) as captured:
        assert post(client, path, body, token(7)).status_code == 202
    # The test runs in a transaction of its own, so the request's is a savepoint.
    begin, insert, end = [query["sql"] for query in captured.captured_queries]
    assert (begin.split()[0], end.split()[0]) == ("SAVEPOINT", "RELEASE")
    assert "INSERT INTO kafka_bridge_outboxmessage" in insert


def test_a_pending_request_can_be_read_by_its_user_alone(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    coupon = make_coupon()
    accepted = post(client, f"/api/v1/coupons/{coupon.id}/issue-async", {}, token(7))
    status = client.get(accepted["Location"], headers=token(7)).json()
    assert status | {"requestedAt": ...} == {
        "requestId": accepted.json()["requestId"],
        "couponType": coupon.coupon_type,
        "userId": 7,
        "status": "PENDING",
        "reason": None,
        "userCouponId": None,
        "requestedAt": ...,
        "processedAt": None,
    }
    foreign = client.get(accepted["Location"], headers=token(8))
    missing = client.get(f"/api/v1/issue-requests/{UUID(int=1)}", headers=token(8))
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json() | {"instance": ""} == missing.json() | {"instance": ""}


def test_a_coupon_for_somebody_else_needs_the_scope(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    path = f"/api/v1/users/8/coupons/{make_coupon().id}/issue"
    refused = post(client, path, {}, token(7))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    allowed = post(client, path, {}, token(7, "other coupons:issue-for-others"))
    assert (allowed.status_code, allowed.json()["userId"]) == (202, 8)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"opens_at": "2100-01-01T00:00:00Z"}, "opens at"),
        ({"closes_at": "2020-01-02T00:00:00Z"}, "closed"),
        ({"paused": True}, "paused"),
    ],
)
def test_a_coupon_that_is_not_open_refuses(
    fields: dict[str, Any], detail: str, client: Client, make_coupon: MakeCoupon, token: Token
) -> None:
    response = post(client, f"/api/v1/coupons/{make_coupon(**fields).id}/issue-async", {}, token(7))
    assert (response.status_code, response.json()["code"]) == (409, "not_open")
    assert detail in response.json()["detail"]
    assert OutboxMessage.objects.count() == 0


@pytest.mark.parametrize("coupon", ["NO_SUCH_TYPE", 4711])
def test_a_coupon_that_does_not_exist_is_not_found(coupon: str | int, client: Client, token: Token) -> None:
    if isinstance(coupon, int):
        response = post(client, f"/api/v1/coupons/{coupon}/issue-async", {}, token(7))
    else:
        response = post(client, "/api/v1/coupons/issue-async", {"couponType": coupon}, token(7))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_a_change_takes_effect_once_the_catalogue_has_aged(
    client: Client, make_coupon: MakeCoupon, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    coupon = make_coupon()
    path = f"/api/v1/coupons/{coupon.id}/issue-async"
    assert post(client, path, {}, token(7)).status_code == 202
    Coupon.objects.update(paused=True)
    monkeypatch.setattr("coupons.coupon_cache._MAX_AGE", 0.0)
    assert post(client, path, {}, token(7)).json()["code"] == "not_open"
