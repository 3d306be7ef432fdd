"""Coupons, and the coupons of a user."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client

from coupons.models import Coupon, UserCoupon

pytestmark = pytest.mark.django_db

MakeCoupon = Callable[..., Coupon]
Token = Callable[..., dict[str, str]]
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def give(coupon: Coupon, user_id: int, **fields: Any) -> UserCoupon:
    return UserCoupon.objects.create(coupon=coupon, user_id=user_id, **({"issued_at": PAST} | fields))


def test_a_coupon_tells_its_stock_and_its_state(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    coupon = make_coupon(total_quantity=10, issued=3, reserved=2)
    body = client.get(f"/api/v1/coupons/{coupon.id}", headers=token(1)).json()
    assert body | {"serverTime": ...} == {
        "couponId": coupon.id,
        "couponType": coupon.coupon_type,
        "name": coupon.name,
        "admission": "queue",
        "discountType": "PERCENT",
        "discountValue": 10,
        "totalQuantity": 10,
        "issuedQuantity": 3,
        "remaining": 5,
        "opensAt": "2020-01-01T00:00:00Z",
        "closesAt": None,
        "state": "OPEN",
        "serverTime": ...,
    }


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "OPEN"),
        ({"opens_at": "2100-01-01T00:00:00Z"}, "SCHEDULED"),
        ({"paused": True}, "PAUSED"),
        ({"issued": 10}, "SOLD_OUT"),
        ({"closes_at": "2020-01-02T00:00:00Z"}, "CLOSED"),
    ],
)
def test_states(fields: dict[str, Any], state: str, client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    coupon = make_coupon(**fields)
    assert client.get(f"/api/v1/coupons/{coupon.id}", headers=token(1)).json()["state"] == state


def test_a_list_is_read_page_by_page(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    ids = [make_coupon().id for _ in range(5)]
    url, seen = "/api/v1/coupons?limit=2", []
    while url:
        page = client.get(url, headers=token(1)).json()
        assert len(page["results"]) <= 2
        seen += [item["couponId"] for item in page["results"]]
        url = page["next"]
    assert seen == ids[::-1]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=-1", "limit=", "cursor=nonsense"])
def test_a_page_that_cannot_be_is_refused(query: str, client: Client, token: Token) -> None:
    response = client.get(f"/api/v1/coupons?{query}", headers=token(1))
    assert (response.status_code, response.json()["code"]) == (400, "invalid")


def test_a_user_reads_their_own_coupons(client: Client, make_coupon: MakeCoupon, token: Token) -> None:
    one, two = make_coupon(), make_coupon()
    used = give(one, 7, status="USED", used_at=PAST)
    expired = give(two, 7, expires_at=datetime(2020, 1, 2, tzinfo=UTC))
    give(one, 8)
    results = client.get("/api/v1/users/7/coupons", headers=token(7)).json()["results"]
    assert [(item["userCouponId"], item["status"]) for item in results] == [(expired.id, "EXPIRED"), (used.id, "USED")]
    assert json.loads(json.dumps(results[1])) == {
        "userCouponId": used.id,
        "couponId": one.id,
        "couponType": one.coupon_type,
        "status": "USED",
        "issuedAt": "2020-01-01T00:00:00Z",
        "expiresAt": None,
        "usedAt": "2020-01-01T00:00:00Z",
    }


def test_another_users_coupons_are_forbidden(client: Client, token: Token) -> None:
    assert client.get("/api/v1/users/8/coupons", headers=token(7)).status_code == 403


@pytest.mark.parametrize("path", ["/api/v1/coupons/0", "/api/v1/coupons/9223372036854775808", "/api/v1/coupons/-1"])
def test_what_cannot_be_an_id_is_not_found(path: str, client: Client, token: Token) -> None:
    response = client.get(path, headers=token(7))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
