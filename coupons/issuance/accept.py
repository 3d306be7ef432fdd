"""The door: a request that the coupon's admission lets in is taken by one row in the outbox."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from django.conf import settings

from common.api.errors import IdempotencyKeyReused, NotFound, Unavailable
from common.group_commit import WaitedTooLong
from common.trace_context import new_traceparent
from kafka_bridge.outbox.backpressure import outbox_backpressure
from kafka_bridge.outbox.writing import new_event_id

from ..admission import ADMISSIONS, AdmissionRequest
from ..coupon_cache import CachedCoupon, coupon_cache
from ..errors import CouponNotOpen
from ..events import IssueRequested
from ..rollout import uses_redis_queue
from .accept_group import group_committers, prepare
from .idempotency import ExistingRequest, find_existing_requests

# Seconds after which a client may try again when the outbox is far behind: minutes of backlog do not go in seconds.
_RETRY_WHEN_BEHIND = 30


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was taken: it will reach SUCCESS or FAILED under this id."""

    request_id: UUID
    coupon_id: int
    coupon_type: str
    user_id: int
    sequence: int | None = None


def request_accept(
    *,
    id_or_type: int | str,
    user_id: int,
    caller_id: int,
    idempotency_key: str | None = None,
    traceparent: str = "",
    source: Literal["API", "BATCH"] = "API",
) -> Accepted:
    """Accept a request for a coupon (by id or type): an outbox row, and what the coupon's admission takes for it.

    With an idempotency key, the caller's earlier request under it is answered again. Raises NotFound,
    CouponNotOpen, SoldOut, AlreadyIssued, IdempotencyKeyReused, Unavailable, and what the database raises: after a
    connection was lost at the commit it is unknown whether the request was accepted.
    """
    if behind := outbox_backpressure.refusal():
        raise Unavailable(behind, retry_after=_RETRY_WHEN_BEHIND)
    coupon = coupon_cache.get(id_or_type)
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    moment = coupon_cache.clock.now()
    keyed = idempotency_key is not None
    request_id = new_event_id() if idempotency_key is None else derived_request_id(caller_id, "issue", idempotency_key)
    if refusal := coupon.window.refusal(moment):
        # A repeat is answered even when the coupon has closed since.
        earlier = find_existing_requests([request_id]).get(request_id) if keyed else None
        if earlier is None:
            raise CouponNotOpen(refusal)
        return _repeat_answer(earlier, coupon, user_id)
    request = IssueRequested(
        request_id=request_id,
        user_id=user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source=source,
        admission=coupon.admission,
    )
    by_worker = uses_redis_queue(user_id, coupon.worker_share)
    candidate = AdmissionRequest(request_id, user_id, coupon.coupon_id, coupon.total_quantity, by_worker)
    admission = ADMISSIONS[coupon.admission]
    item = prepare(admission, candidate, request, traceparent or new_traceparent(), may_be_repeat=keyed)
    try:
        answer = group_committers.for_coupon(coupon).submit(item)
    except WaitedTooLong as error:
        raise Unavailable(
            "The requests before this one wait for the database. It was not executed: try again in a moment.",
            retry_after=1,
        ) from error
    if answer.earlier is not None:
        return _repeat_answer(answer.earlier, coupon, user_id)
    if answer.refusal is not None:
        raise answer.refusal
    if not answer.new:
        raise RuntimeError(f"the outbox row of {request_id} is neither new nor there")
    return Accepted(request_id, coupon.coupon_id, coupon.coupon_type, user_id, answer.sequence)


def derived_request_id(caller_id: int, operation: str, idempotency_key: str) -> UUID:
    """The request id of an idempotency key: nobody else's key, and no guess, leads to it."""
    text = f"{caller_id}\n{operation}\n{idempotency_key}".encode()
    digest = bytearray(hmac.digest(settings.SECRET_KEY.encode(), text, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: ids of one's own making (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


def _repeat_answer(earlier: ExistingRequest, coupon: CachedCoupon, user_id: int) -> Accepted:
    if not earlier.is_for(coupon.coupon_id, user_id):
        raise IdempotencyKeyReused("The Idempotency-Key belongs to a request for another coupon or user.")
    return Accepted(earlier.request_id, earlier.coupon_id, earlier.coupon_type, earlier.user_id, earlier.sequence)
