"""Finish the requests of dead-lettered messages as FAILED."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from common.bigint import MAX_BIGINT
from common.postgres.clock import database_time, isoformat_z
from kafka_bridge.outbox.writing import stored_payloads
from kafka_bridge.registry import Rejected, traceparent_of

from .. import policy
from ..admission import reservations
from ..messages import ISSUE_REQUESTED
from ..models import Coupon
from .finish import RequestResult, alert_gate_mismatch, find_decided, finish_requests


def fail_dead_lettered_requests(rejected: Sequence[Rejected]) -> None:
    """Finish the requests of dead-lettered messages as FAILED with ERROR, in the transaction of the dead letters.

    A message without a readable request id finishes nothing; a decided request keeps its result. The reservations of
    the finished requests are released.
    """
    rejected_by_id = {
        request_id: rejection for rejection in rejected if (request_id := _request_id_of(rejection)) is not None
    }
    for request_id in find_decided(list(rejected_by_id)):
        del rejected_by_id[request_id]
    if not rejected_by_id:
        return
    # Waits for an issuer that is deciding them concurrently: then inserting the terminal rows fails on their primary
    # key and the batch is retried.
    alert_gate_mismatch(rejected_by_id, reservations.release(list(rejected_by_id)))
    now = database_time()
    accepted = stored_payloads(ISSUE_REQUESTED, list(rejected_by_id))
    rows = [_failed_result(id_, rejection, accepted.get(id_)) for id_, rejection in rejected_by_id.items()]
    coupon_ids = dict(
        Coupon.objects.filter(coupon_type__in={row.coupon_type for row in rows}).values_list("coupon_type", "id")
    )
    finish_requests([replace(row, coupon_id=coupon_ids.get(row.coupon_type)) for row in rows], now)


class _Readable(msgspec.Struct, rename="camel"):
    """The fields of a rejected message that may still be readable."""

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


def _failed_result(request_id: UUID, rejected: Rejected, accepted: bytes | None) -> RequestResult:
    message = rejected.message
    # The accepted outbox row is trusted before the payload from the topic.
    readable = _read_leniently(accepted or message.value)
    user_id, coupon_type = readable.user_id, readable.coupon_type
    return RequestResult(
        request_id=request_id,
        coupon_id=None,
        coupon_type=coupon_type if isinstance(coupon_type, str) and policy.is_coupon_type(coupon_type) else "",
        user_id=user_id if type(user_id) is int and 0 < user_id <= MAX_BIGINT else None,
        status=policy.FAILED,
        reason=policy.ERROR,
        user_coupon_id=None,
        source="",
        requested_at=None,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        remaining=None,
        published_at=isoformat_z(message.published_at) if message.published_at else None,
        traceparent=traceparent_of(message),
    )
