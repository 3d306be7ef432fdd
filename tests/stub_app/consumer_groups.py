"""The consumer groups of the stub, registered with the bridge."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from common.processes.lifecycle import StopFlag
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import (
    ConsumerGroup,
    ReceivedMessage,
    Rejected,
    decode_body,
    on_broker_rejection,
    register_group,
    register_retention_guard,
)

from .models import Booking
from .routes import BOOKING_DECIDED, BOOKING_REQUESTED


class BookingRequest(msgspec.Struct, rename="camel", frozen=True):
    """A user asks for a seat; ``seats`` is how many the room has."""

    request_id: UUID
    user_id: int
    room: str
    seats: int
    requested_at: datetime


_DECODER = msgspec.json.Decoder(BookingRequest)


def decode(message: ReceivedMessage) -> BookingRequest:
    return decode_body(message, _DECODER, "booking request")


def book(requests: Sequence[BookingRequest]) -> None:
    """Decide each request once, in order, and publish the results."""
    with connection.cursor() as cursor:
        for room in sorted({request.room for request in requests}):
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [room])
    decided = decided_requests([request.request_id for request in requests])
    for request in requests:
        if request.request_id in decided:
            continue
        decided.add(request.request_id)
        holders = set(Booking.objects.filter(room=request.room, status="SUCCESS").values_list("user_id", flat=True))
        reason = "DUPLICATE" if request.user_id in holders else "FULL" if len(holders) >= request.seats else ""
        status = "FAILED" if reason else "SUCCESS"
        Booking.objects.create(
            request_id=request.request_id, room=request.room, user_id=request.user_id, status=status, reason=reason
        )
        publish([Message(BOOKING_DECIDED, {"room": request.room, "userId": request.user_id, "status": status})])


def decided_requests(request_ids: Collection[UUID]) -> set[UUID]:
    return set(Booking.objects.filter(request_id__in=request_ids).values_list("request_id", flat=True))


def fail_requests(rejected: Sequence[Rejected]) -> None:
    """End the requests of dead-lettered messages, as far as they can be read."""
    for item in rejected:
        body = _read_leniently(item.message.value)
        request_id = UUID(body["requestId"]) if "requestId" in body else item.message.event_id
        if request_id is not None and not decided_requests([request_id]):
            Booking.objects.create(
                request_id=request_id,
                room=body.get("room", ""),
                user_id=user_id if isinstance(user_id := body.get("userId"), int) else None,
                status="FAILED",
                reason="ERROR",
            )


def _read_leniently(value: bytes | None) -> dict[str, Any]:
    try:
        body = json.loads(value or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def undecided_requests(request_ids: Collection[UUID]) -> set[UUID]:
    return set(request_ids) - decided_requests(request_ids)


def accept_all(notices: Sequence[Any], stop: StopFlag) -> Sequence[None]:
    """A call to a service that accepts everything."""
    return [None] * len(notices)


BOOKINGS = ConsumerGroup(
    name="bookings",
    event_types=(BOOKING_REQUESTED,),
    decode=decode,
    handle=book,
    on_dead_letters=fail_requests,
)
NOTICES = ConsumerGroup(
    name="notices",
    event_types=(BOOKING_DECIDED,),
    decode=lambda message: message.value,
    call=accept_all,
    inbox=True,
)


def register() -> None:
    """Register groups and callbacks; called once, when the app is ready."""
    register_group(BOOKINGS)
    register_group(NOTICES)
    on_broker_rejection(BOOKING_REQUESTED, fail_requests)
    register_retention_guard(BOOKING_REQUESTED, undecided_requests)
