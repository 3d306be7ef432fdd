"""What becomes of the request behind a message that could not be handled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from kafka_bridge.clock import database_time
from kafka_bridge.outbox import stored_payloads
from kafka_bridge.registry import Rejected

from .. import policy
from ..admission import reservations
from ..messages import ISSUE_REQUESTED, read_traceparent
from ..models import Coupon
from .ending import Terminal, decided_requests, end_requests
from .refusing import alert_refused


def end_rejected(rejected: Sequence[Rejected]) -> None:
    """End the requests of dead-lettered messages with ERROR, in the transaction that writes the dead letters.

    Messages whose request nobody can name end nothing; a request that has its answer keeps it. What was reserved for
    them goes back.
    """
    named = {request_id: item for item in rejected if (request_id := _rejected_request_id(item)) is not None}
    for request_id in decided_requests(list(named)):
        del named[request_id]
    if not named:
        return
    # Waits for an issuer that may be deciding them: then the terminal rows collide and it is tried again.
    alert_refused(named, reservations.give_back(list(named)))
    now = database_time()
    accepted = stored_payloads(ISSUE_REQUESTED, list(named))
    rows = [_rejected_terminal(id_, item, accepted.get(id_), now) for id_, item in named.items()]
    known = dict(
        Coupon.objects.filter(coupon_type__in={row.coupon_type for row in rows}).values_list("coupon_type", "id")
    )
    end_requests([row._replace(coupon_id=known.get(row.coupon_type)) for row in rows])


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


def _rejected_request_id(rejected: Rejected) -> UUID | None:
    try:
        return UUID(_read_leniently(rejected.message.value).request_id)
    except (ValueError, TypeError, AttributeError):
        return rejected.message.event_id


def _rejected_terminal(request_id: UUID, rejected: Rejected, accepted: bytes | None, now: datetime) -> Terminal:
    message = rejected.message
    # What the door accepted is believed before what came back from the topic.
    readable = _read_leniently(accepted or message.value)
    user_id, coupon_type = readable.user_id, readable.coupon_type
    return Terminal(
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
        traceparent=read_traceparent(message),
    )
