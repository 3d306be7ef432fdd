from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from coupons.models import Coupon, UserCoupon
from couponsite.auth.tokens import issue_access_token
from kafka_bridge.models import OutboxMessage
from orders.models import Product
from tests.support.gateway import Call as ProviderCall
from tests.support.gateway import Memory, memory

ALICE = 1001
BOB = 1002
ORDERS = "/api/v1/orders"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

# The test client's answers have more than an HttpResponse, and no public type.
Call = Callable[..., Any]
GiveCoupon = Callable[..., UserCoupon]
Place = Callable[..., int]


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


class Pause:
    """An answer of the provider that takes until ``end``."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._ended = threading.Event()

    def answer(self, call: ProviderCall, move: Callable[[], None]) -> None:
        self.begun.set()
        assert self._ended.wait(20)
        move()

    def end(self) -> None:
        self._ended.set()


@pytest.fixture
def provider(settings: Settings) -> Memory:
    """The payment provider of this test; it approves until told otherwise."""
    settings.PAYMENT_GATEWAY = "tests.support.gateway.MemoryGateway"
    memory.reset()
    return memory


@pytest.fixture
def pause(provider: Memory) -> Iterator[Pause]:
    """The provider lets callers wait."""
    pause = Pause()
    provider.answer = pause.answer
    yield pause
    pause.end()


@pytest.fixture
def call() -> Call:
    """``call("POST", path, body, user=ALICE, Idempotency_Key=...)``; the body may be bytes. For any thread."""

    def send(
        method: str, path: str, body: Any = b"", *, user: int | None = ALICE, scope: str = "", **headers: str
    ) -> Any:
        if user is not None:
            headers["Authorization"] = f"Bearer {issue_access_token(user, scope)}"
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Client().generic(method, path, raw, "application/json", headers=named)

    return send


@pytest.fixture
def socks(db: None) -> Product:
    return Product.objects.create(name="Wool socks", price=12_900)


@pytest.fixture
def give_coupon(make_coupon: Callable[..., Coupon]) -> GiveCoupon:
    """``give_coupon(ALICE, status="ISSUED", discount_value=...)``: a coupon of its own kind, given to a user."""

    def give(user_id: int = ALICE, *, status: str = "ISSUED", expires_at: Any = None, **coupon: Any) -> UserCoupon:
        return UserCoupon.objects.create(
            coupon=make_coupon(issued=1, **coupon),
            user_id=user_id,
            status=status,
            issued_at=datetime.now(UTC),
            expires_at=expires_at,
        )

    return give


@pytest.fixture
def place(call: Call, socks: Product) -> Place:
    """``place(quantity=1, userCouponId=..., user=ALICE)``: places an order for socks and returns its id."""

    def order(*, quantity: int = 1, user: int = ALICE, **body: Any) -> int:
        items = [{"productId": socks.id, "quantity": quantity}]
        answer = call("POST", ORDERS, {"items": items} | body, user=user)
        assert answer.status_code == 201, answer.content
        order_id: int = answer.json()["orderId"]
        return order_id

    return order
