from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client

from coupons.api import examples
from coupons.models import Coupon, IssueRequest
from couponsite.auth.api import EXAMPLE_LOGIN
from orders import examples as order_examples
from orders.models import Order, Product
from tests.support.factories import CouponFactory

from .document import Document

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2120, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_logins_counted() -> Iterator[None]:
    redis: Any = caches["default"]
    redis.delete_pattern("login:*")
    yield
    redis.delete_pattern("login:*")


@pytest.fixture
def document(client: Client) -> Document:
    response = client.get("/api/schema")
    assert response.status_code == 200
    document: Document = response.json()
    return document


@pytest.fixture
def coupon(db: None) -> Coupon:
    """The coupon that the examples are about."""
    return CouponFactory.create(id=examples.COUPON_ID, coupon_type=examples.COUPON_TYPE, total_quantity=1000)


@pytest.fixture
def closed_coupon(coupon: Coupon) -> Coupon:
    return CouponFactory.create(
        id=coupon.pk + 1, opens_at=LONG_AGO, closes_at=LONG_AGO + timedelta(days=1), valid_days=30
    )


@pytest.fixture
def product(db: None) -> Product:
    return Product.objects.create(
        id=order_examples.PRODUCT_ID, name=order_examples.PRODUCT_NAME, price=order_examples.PRICE
    )


@pytest.fixture
def orders(product: Product) -> list[Order]:
    """The orders that the examples are about: one to look at and pay, one to cancel."""
    return [
        _order(order_examples.ORDER_ID, product),
        _order(order_examples.CANCELLED_ORDER_ID, product),
    ]


def _order(order_id: int, product: Product) -> Order:
    order = Order.objects.create(
        id=order_id,
        user_id=examples.USER_ID,
        total_amount=product.price,
        pay_amount=product.price,
        expires_at=FAR_AHEAD,
    )
    order.lines.create(product=product, name=product.name, unit_price=product.price, quantity=1)
    return order


@pytest.fixture
def cast(coupon: Coupon, closed_coupon: Coupon, orders: list[Order]) -> None:
    """All that the examples speak of: a user of the site, who has coupons and orders, and a request that has ended."""
    User.objects.create_user(**msgspec.structs.asdict(EXAMPLE_LOGIN))
    issued = [
        one.user_coupons.create(id=key, user_id=examples.USER_ID, issued_at=LONG_AGO, expires_at=expires_at)
        for key, one, expires_at in (
            (examples.USER_COUPON_ID, coupon, None),
            (examples.USER_COUPON_ID + 1, closed_coupon, LONG_AGO + timedelta(days=30)),
        )
    ]
    IssueRequest.objects.create(
        request_id=examples.REQUEST_ID,
        coupon=coupon,
        coupon_type=coupon.coupon_type,
        user_id=examples.USER_ID,
        status=IssueRequest.Status.SUCCESS,
        user_coupon_id=issued[0].pk,
        requested_at=LONG_AGO,
        processed_at=LONG_AGO,
        topic="coupon-issue-request",
        partition=0,
        offset=0,
    )
