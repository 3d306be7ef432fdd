"""Events and messages of the stub, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

from django.db import transaction
from uuid_utils.compat import uuid7

from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import ReceivedMessage

from .models import Booking
from .routes import NUMBER_DRAWN, REQUESTS

_offsets = count()


def publish_keys(keys: list[int], *, text: str = "") -> None:
    """One event per key, in order, in one transaction."""
    with transaction.atomic():
        publish(Message(NUMBER_DRAWN, {"key": key, "text": text, "number": n}) for n, key in enumerate(keys))


def publish_numbers(numbers: range, *, key: int = 1) -> None:
    """Events of one key that carry their number, each in a transaction of its own."""
    for number in numbers:
        with transaction.atomic():
            publish([Message(NUMBER_DRAWN, {"key": key, "number": number})])


def request_body(user_id: int, *, room: str = "blue", seats: int = 10, **changes: Any) -> dict[str, Any]:
    """The body of a booking request; keyword arguments replace fields, ``...`` leaves a field out."""
    body = {
        "requestId": str(uuid7()),
        "userId": user_id,
        "room": room,
        "seats": seats,
        "requestedAt": "2026-01-01T00:00:00Z",
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


def request(user_id: int, **changes: Any) -> bytes:
    """A booking request as it is on the topic, see ``request_body``."""
    return json.dumps(request_body(user_id, **changes)).encode()


def message(value: bytes | dict[str, Any] | None, **changes: Any) -> ReceivedMessage:
    """A message on partition 0 of the topic of requests, at the next offset."""
    fields: dict[str, Any] = {
        "topic": REQUESTS,
        "partition": 0,
        "offset": next(_offsets),
        "timestamp": 1_767_225_600_000,
        "key": b"K",
        "value": json.dumps(value).encode() if isinstance(value, dict) else value,
        "headers": (),
    }
    return ReceivedMessage(**(fields | changes))


def requests(user_ids: Sequence[int], **changes: Any) -> list[ReceivedMessage]:
    """One request per user id, in that order."""
    return [message(request(user_id, **changes)) for user_id in user_ids]


def winners() -> list[int | None]:
    """The users who have a seat, in order."""
    return list(Booking.objects.filter(status="SUCCESS").order_by("user_id").values_list("user_id", flat=True))


def answers() -> dict[int | None, str]:
    """Status by user."""
    return dict(Booking.objects.values_list("user_id", "status"))
