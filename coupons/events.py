"""The messages of this app: what they carry, how they are read, and how domain facts become them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

import msgspec

from kafka_bridge.contracts import isoformat_z
from kafka_bridge.errors import PoisonMessage
from kafka_bridge.outbox import Event
from kafka_bridge.registry import ReceivedMessage

ISSUE_REQUESTED = "coupon.issue.requested.v1"
ISSUE_SUCCEEDED = "coupon.issue.succeeded.v1"
ISSUE_FAILED = "coupon.issue.failed.v1"

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
CouponType = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


class IssueRequested(msgspec.Struct, frozen=True, rename="camel"):
    """Somebody asks for a coupon. The API always names both ``couponId`` and ``couponType``; others may name one."""

    user_id: Id
    request_id: UUID | None = None
    coupon_id: Id | None = None
    coupon_type: CouponType | None = None
    requested_at: AwareTime | None = None
    source: Literal["API", "BATCH"] = "API"
    admission: Literal["queue", "gate", "reserve"] = "queue"
    sequence: int | None = None


class IssueTask(NamedTuple):
    """A request as it came out of the topic, with the place it stood at."""

    request_id: UUID
    request: IssueRequested
    topic: str
    partition: int
    offset: int
    traceparent: str


_decoder = msgspec.json.Decoder(IssueRequested)


def read_issue_task(message: ReceivedMessage) -> IssueTask:
    """The request in ``message``. A body without requestId takes it from ``ce_id``. Raises PoisonMessage."""
    if message.value is None:
        raise PoisonMessage("the message has no body")
    try:
        request = _decoder.decode(message.value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PoisonMessage(f"not a valid {ISSUE_REQUESTED}: {error}") from error
    if request.coupon_id is None and request.coupon_type is None:
        raise PoisonMessage("neither couponId nor couponType is given")
    request_id = request.request_id or message.event_id
    if request_id is None:
        raise PoisonMessage("neither requestId nor a ce_id that is a UUID is given")
    return IssueTask(request_id, request, message.topic, message.partition, message.offset, read_traceparent(message))


def read_traceparent(message: ReceivedMessage) -> str:
    """The W3C trace context of the message, empty if there is none or it is malformed."""
    raw = (message.header("traceparent") or b"").decode("ascii", "replace")
    return raw if is_traceparent(raw) else ""


def is_traceparent(text: str) -> bool:
    """Whether ``text`` is a version 00 traceparent (W3C Trace Context, 3.2)."""
    return _TRACEPARENT.fullmatch(text) is not None


def issue_requested(
    *,
    request_id: UUID,
    user_id: int,
    coupon_id: int,
    coupon_type: str,
    requested_at: datetime,
    source: str,
    admission: str,
    sequence: int | None = None,
    traceparent: str = "",
) -> Event:
    """The event of an accepted request; its id is the request id."""
    return Event(
        ISSUE_REQUESTED,
        {
            "requestId": str(request_id),
            "userId": user_id,
            "couponId": coupon_id,
            "couponType": coupon_type,
            "requestedAt": isoformat_z(requested_at),
            "source": source,
            "admission": admission,
            "sequence": sequence,
        },
        event_id=request_id,
        traceparent=traceparent,
    )


def issue_ended(
    *,
    request_id: UUID,
    user_id: int | None,
    coupon_id: int | None,
    coupon_type: str,
    reason: str | None,
    user_coupon_id: int | None,
    processed_at: datetime,
    traceparent: str = "",
) -> Event:
    """The event of a request that reached its result; ``reason`` None is success."""
    return Event(
        ISSUE_SUCCEEDED if reason is None else ISSUE_FAILED,
        {
            "requestId": request_id,
            "userId": user_id,
            "couponId": coupon_id,
            "couponType": coupon_type,
            "status": "SUCCESS" if reason is None else "FAILED",
            "reason": reason,
            "userCouponId": user_coupon_id,
            "processedAt": isoformat_z(processed_at),
        },
        traceparent=traceparent,
    )
