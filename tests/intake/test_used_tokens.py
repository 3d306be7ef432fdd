"""The intake remembers verified tokens, and not a moment longer than they are valid."""

from __future__ import annotations

from datetime import timedelta

from couponsite.auth.tokens import issue_access_token
from demo.load_client import encode_request
from devstack import wait_until
from tests.support.factories import CouponFactory

from .conftest import Pair


def test_a_token_that_was_accepted_is_refused_once_it_has_expired(pair: Pair) -> None:
    coupon = CouponFactory.create(total_quantity=10_000)
    token = issue_access_token(1, lifetime=timedelta(seconds=4))
    message = encode_request(
        "POST", f"/api/v1/coupons/{coupon.id}/issue-async", pair.port, {"authorization": f"Bearer {token}"}, {}
    )
    assert [pair.to_lane(message).status for _ in range(2)] == [202, 202]
    wait_until(lambda: pair.to_lane(message).status == 401, 20, "the expired token is still accepted")


def test_a_token_whose_signature_differs_from_that_of_an_accepted_one_is_refused(pair: Pair) -> None:
    coupon = CouponFactory.create(total_quantity=10)
    token = issue_access_token(1)
    signed, _, signature = token.rpartition(".")
    forged = f"{signed}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    statuses = []
    for text in (token, forged, token):
        message = encode_request(
            "POST", f"/api/v1/coupons/{coupon.id}/issue-async", pair.port, {"authorization": f"Bearer {text}"}, {}
        )
        statuses.append(pair.to_lane(message).status)
    assert statuses == [202, 401, 202]
