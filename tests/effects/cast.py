"""Orders and results as messages, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from kafka_bridge.cloudevents import Headers
from kafka_bridge.registry import ReceivedMessage
from tests.support.messages import message

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PAID_AT = "2026-03-01T09:00:00Z"
CANCELLED_AT = "2026-03-02T09:00:00Z"
ITEMS = [{"productId": 1, "name": '비누 "소"', "quantity": 2, "unitPrice": 500}]


def headers(event_type: str, event_id: UUID | None = None) -> Headers:
    """The headers that tell of an event; a new id unless one is given."""
    return (
        ("ce_id", str(event_id or uuid7()).encode()),
        ("ce_type", event_type.encode()),
        ("traceparent", TRACEPARENT.encode()),
    )


def completed_body(order_id: int, **changes: Any) -> dict[str, Any]:
    amounts = {"totalAmount": 1000, "discountAmount": 100, "payAmount": 900}
    body = {"orderId": order_id, "userId": 7000 + order_id, "items": ITEMS, **amounts}
    return {**body, "userCouponId": 3, "paidAt": PAID_AT, **changes}


def cancelled_body(order_id: int, **changes: Any) -> dict[str, Any]:
    body = {"orderId": order_id, "userId": 7000 + order_id, "items": ITEMS, "paidAt": PAID_AT}
    return {**body, "cancelledAt": CANCELLED_AT, **changes}


def completed(order_id: int, **changes: Any) -> ReceivedMessage:
    """That an order of user 7000 + order_id was paid; keyword arguments replace fields of the body."""
    body = completed_body(order_id, **changes)
    return message(body, topic="order-completed", headers=headers("order.completed.v1"))


def cancelled(order_id: int, **changes: Any) -> ReceivedMessage:
    body = cancelled_body(order_id, **changes)
    return message(body, topic="order-cancelled", headers=headers("order.cancelled.v1"))


def many_completed(order_ids: Sequence[int]) -> list[ReceivedMessage]:
    return [completed(order_id) for order_id in order_ids]


def result_body(user_id: int | None, reason: str | None = None, **changes: Any) -> dict[str, Any]:
    body = {"requestId": str(uuid7()), "userId": user_id, "couponId": 1, "couponType": "SUMMER"}
    status = {"status": "FAILED" if reason else "SUCCESS", "reason": reason, "userCouponId": None if reason else 5}
    return {**body, **status, "processedAt": PAID_AT, **changes}


def result(user_id: int | None, reason: str | None = None, **changes: Any) -> ReceivedMessage:
    """How a request ended: with a coupon, or for ``reason`` without."""
    event_type = "coupon.issue.failed.v1" if reason else "coupon.issue.succeeded.v1"
    return message(result_body(user_id, reason, **changes), topic="coupon-issue-response", headers=headers(event_type))
