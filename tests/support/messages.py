"""Messages as the consumer gets them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from coupons.models import Coupon
from kafka_bridge.registry import ReceivedMessage

_offsets = count()


def request_body(coupon: Coupon, user_id: int, **changes: Any) -> dict[str, Any]:
    """The body of a request as the API writes it; keyword arguments replace fields, ``...`` leaves one out."""
    body = {
        "requestId": str(uuid7()),
        "userId": user_id,
        "couponId": coupon.id,
        "couponType": coupon.coupon_type,
        "requestedAt": "2026-01-01T00:00:00Z",
        "source": "API",
        "admission": "queue",
        "sequence": None,
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


def message(value: bytes | dict[str, Any] | None, **changes: Any) -> ReceivedMessage:
    """A message on partition 0 of the request topic, at the next offset."""
    fields: dict[str, Any] = {
        "topic": "coupon-issue-request",
        "partition": 0,
        "offset": next(_offsets),
        "timestamp": 1_767_225_600_000,
        "key": b"K",
        "value": json.dumps(value).encode() if isinstance(value, dict) else value,
        "headers": (),
    }
    return ReceivedMessage(**(fields | changes))


def requests(coupon: Coupon, user_ids: Sequence[int]) -> list[ReceivedMessage]:
    """One request per user id, in that order."""
    return [message(request_body(coupon, user_id)) for user_id in user_ids]


def request_id(received: ReceivedMessage) -> UUID:
    """The request id in a message's body."""
    return UUID(json.loads(received.value or b"{}")["requestId"])
