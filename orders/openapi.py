"""OpenAPI descriptions of the operations on orders; see ``coupons.api.openapi``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from common.api.errors import IdempotencyKeyReused, NotFound, Unavailable
from common.api.requests import EmptyBody
from coupons.api.openapi import (
    EMPTY,
    EXAMPLE_USER_COUPON_ID,
    IDEMPOTENCY_KEY,
    TRACEPARENT,
    Method,
    answer,
    describe,
    id_in_path,
    location,
)
from coupons.errors import CouponNotUsable

from . import schemas
from .errors import InProgress, InvalidState

# The examples use two orders: a cancelled order cannot be paid.
EXAMPLE_PRODUCT_ID = 31
EXAMPLE_ORDER_ID = 4711
EXAMPLE_CANCELLED_ORDER_ID = 4712
EXAMPLE_PRODUCT_NAME = "Wool socks"
EXAMPLE_PRICE = 12_900

_PLACED = {
    "orderId": EXAMPLE_ORDER_ID,
    "status": "PENDING",
    "items": [
        {"productId": EXAMPLE_PRODUCT_ID, "name": EXAMPLE_PRODUCT_NAME, "quantity": 2, "unitPrice": EXAMPLE_PRICE}
    ],
    "totalAmount": 25_800,
    "discountAmount": 2_580,
    "payAmount": 23_220,
    "userCouponId": EXAMPLE_USER_COUPON_ID,
    "expiresAt": "2026-07-01T03:31:10.250113Z",
}
_PAID_AT = "2026-07-01T03:02:41.903318Z"
_PAID = {"orderId": EXAMPLE_ORDER_ID, "status": "PAID", "paidAt": _PAID_AT}
_CANCELLED = {
    "orderId": EXAMPLE_CANCELLED_ORDER_ID, "status": "CANCELLED", "cancelledAt": "2026-07-01T03:05:00.771240Z",
}  # fmt: skip
_ORDER = _PLACED | {"status": "PAID", "paidAt": _PAID_AT, "cancelledAt": None}

_ITEMS = [{"productId": EXAMPLE_PRODUCT_ID, "quantity": 2}]
_BODIES: dict[str, dict[str, Any]] = {
    "without a coupon": {"items": _ITEMS},
    "with a coupon": {"items": _ITEMS, "userCouponId": EXAMPLE_USER_COUPON_ID},
}

_ORDER_ID = id_in_path("order_id", EXAMPLE_ORDER_ID)
_CANCELLED_ORDER_ID = id_in_path("order_id", EXAMPLE_CANCELLED_ORDER_ID)
_LOCATION = location(201, "^/api/v1/orders/[0-9]{1,19}$", "Where the order can be read.")


def _next(operation_id: str, description: str) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "parameters": {"orderId": "$response.body#/orderId"},
        "description": description,
    }


def order_create(body: type[msgspec.Struct]) -> Callable[[Method], Method]:
    """Describe the operation that places an order with a body of type ``body``."""
    return describe(
        "orderCreate",
        {201: answer(schemas.CreatedOrder, "The order is created and can be paid until `expiresAt`.", _PLACED)},
        body=body,
        bodies=_BODIES,
        parameters=[IDEMPOTENCY_KEY, _LOCATION],
        refusals=[NotFound, CouponNotUsable, InProgress, IdempotencyKeyReused],
        links={
            201: {
                "order": _next("order", "Read the order."),
                "pay": _next("orderPay", "Pay the order."),
                "cancel": _next("orderCancel", "Cancel the order."),
            }
        },
    )


order = describe(
    "order",
    {200: answer(schemas.Order, "The order and its current status.", _ORDER)},
    parameters=[_ORDER_ID],
    refusals=[NotFound],
)
order_pay = describe(
    "orderPay",
    {200: answer(schemas.PaidOrder, "The order is paid. Repeated calls do not pay it again.", _PAID)},
    body=EmptyBody,
    bodies=EMPTY,
    parameters=[_ORDER_ID, IDEMPOTENCY_KEY, TRACEPARENT],
    refusals=[NotFound, InvalidState, InProgress, IdempotencyKeyReused, Unavailable],
)
order_cancel = describe(
    "orderCancel",
    {200: answer(schemas.CancelledOrder, "The order is cancelled; a payment is refunded.", _CANCELLED)},
    body=EmptyBody,
    bodies=EMPTY,
    parameters=[_CANCELLED_ORDER_ID, TRACEPARENT],
    refusals=[NotFound, InvalidState, InProgress, Unavailable],
)
