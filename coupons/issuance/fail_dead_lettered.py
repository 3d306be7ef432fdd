"""What becomes of the request behind a message that could not be handled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from common.postgres.clock import database_time
from kafka_bridge.outbox.writing import stored_payloads
from kafka_bridge.registry import Rejected, traceparent_of

from .. import policy
from ..admission import reservations
from ..messages import ISSUE_REQUESTED
from ..models import Coupon
from .finish import RequestResult, alert_gate_mismatch, find_decided, finish_requests


def fail_dead_lettered_requests(rejected: Sequence[Rejected]) -> None:
    """End the requests of dead-lettered messages with ERROR, in the transaction that writes the dead letters.

    Messages whose request nobody can name end nothing; a request that has its answer keeps it. What was reserved for
    them goes back.
    """
    named = {request_id: item for item in rejected if (request_id := _request_id_of(item)) is not None}
    for request_id in find_decided(list(named)):
        del named[request_id]
    if not named:
        return
    # Waits for an issuer that may be deciding them: then the terminal rows collide and it is tried again.
    alert_gate_mismatch(named, reservations.release(list(named)))
    now = database_time()
    accepted = stored_payloads(ISSUE_REQUESTED, list(named))
    rows = [_failed_result(id_, item, accepted.get(id_), now) for id_, item in named.items()]
    known = dict(
        Coupon.objects.filter(coupon_type__in={row.coupon_type for row in rows}).values_list("coupon_type", "id")
    )
    finish_requests([row._replace(coupon_id=known.get(row.coupon_type)) for row in rows])


class _Readable(msgspec.Struct, rename="camel"):
    """Whatever can still be read of a message that was rejected."""

    request_id: Any = None
    user_id: Any = None
    coupon_type: Any = None


def _read_leniently(payload: bytes | None) -> _Readable:
    try:
        return msgspec.json.decode(payload or b"{}", type=_Readable)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Readable()


def _request_id_of(rejected: Rejected) -> UUID | None:
    try:
        return UUID(_read_leniently(rejected.message.value).request_id)
    except (ValueError, TypeError, AttributeError):
        return rejected.message.event_id


def _failed_result(request_id: UUID, rejected: Rejected, accepted: bytes | None, now: datetime) -> RequestResult:
    message = rejected.message
    # What the door accepted is believed before what came back from the topic.
    readable = _read_leniently(accepted or message.value)
    user_id, coupon_type = readable.user_id, readable.coupon_type
    return RequestResult(
        request_id=request_id,
        coupon_id=None,
        coupon_type=coupon_type if isinstance(coupon_type, str) and policy.is_coupon_type(coupon_type) else "",
        user_id=user_id if type(user_id) is int and 0 < user_id < 2**63 else None,
        status=policy.FAILED,
        reason=policy.ERROR,
        user_coupon_id=None,
        source="",
        requested_at=None,
        processed_at=now,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        remaining=None,
        traceparent=traceparent_of(message),
    )
