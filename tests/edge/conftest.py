from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client

from coupons.coupon_cache import coupon_cache
from coupons.models import Coupon
from couponsite.auth.tokens import issue_access_token

ALICE = 1001
BOB = 1002

# The test client's answers have more than an HttpResponse, and no public type.
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    """No login counted yet, no coupon remembered from another test."""
    coupon_cache.clear()
    redis: Any = caches["default"]
    redis.delete_pattern("login:*")
    caches["process"].clear()
    yield
    coupon_cache.clear()


@pytest.fixture
def coupon(db: None) -> Coupon:
    return Coupon.objects.create(
        coupon_type="SUMMER", name="Summer", discount_type="PERCENT", discount_value=10, total_quantity=100
    )


@pytest.fixture
def call(client: Client) -> Call:
    """``call("POST", path, body, user=ALICE, scope="")``: a call of the API with a token; the body may be bytes."""

    def send(
        method: str,
        path: str,
        body: Any = b"",
        *,
        user: int | None = ALICE,
        scope: str = "",
        content_type: str = "application/json",
        **extra: Any,
    ) -> Any:
        if user is not None:
            extra["HTTP_AUTHORIZATION"] = f"Bearer {issue_access_token(user, scope)}"
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.generic(method, path, raw, content_type, **extra)

    return send


def assert_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """That the answer is this problem in every part, and nothing of our insides; returns it."""
    assert (response.status_code, response["Content-Type"]) == (status, "application/problem+json")
    body: dict[str, Any] = json.loads(response.content)
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"].endswith(f":{code}")
    assert body["title"]
    assert body["detail"]
    assert body["instance"].startswith("/")
    assert body.keys() <= {"type", "title", "status", "detail", "instance", "code", "errors"}
    assert "Traceback" not in response.content.decode()
    return body
