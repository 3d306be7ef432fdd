"""Accept a request: ask the coupon's admission, then insert one outbox row."""

from __future__ import annotations

import hashlib
import hmac
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
from ..policy import PENDING
from ..rollout import uses_redis_queue
from ..schemas import Accepted
from .accept_group import group_committers, prepare
from .idempotency import ExistingRequest, find_existing_requests

# Seconds before a client may try again while the outbox is far behind: the backlog takes minutes to publish.
_BACKPRESSURE_RETRY_AFTER = 30


def request_accept(
    *,
    id_or_type: int | str,
    user_id: int,
    caller_id: int,
    idempotency_key: str | None = None,
    traceparent: str = "",
) -> Accepted:
    """Accept a request for a coupon (by id or type): insert its outbox row and what the coupon's admission reserves.

    With an idempotency key that the caller has used before, returns the existing request. Raises NotFound,
    CouponNotOpen, SoldOut, AlreadyIssued, IdempotencyKeyReused, Unavailable, and database errors: if the connection
    is lost during the commit, it is unknown whether the request was accepted.
    """
    if refusal_reason := outbox_backpressure.refusal():
        raise Unavailable(refusal_reason, retry_after=_BACKPRESSURE_RETRY_AFTER)
    coupon = coupon_cache.get(id_or_type)
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    moment = coupon_cache.clock.now()
    has_key = idempotency_key is not None
    request_id = new_event_id() if idempotency_key is None else derived_request_id(caller_id, "issue", idempotency_key)
    if refusal := coupon.window.refusal(moment):
        # A repeated request gets its answer even if the coupon has closed since.
        existing = find_existing_requests([request_id]).get(request_id) if has_key else None
        if existing is None:
            raise CouponNotOpen(refusal)
        return _repeat_answer(existing, coupon, user_id)
    request = IssueRequested(
        request_id=request_id,
        user_id=user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source="API",
        admission=coupon.admission,
    )
    by_worker = uses_redis_queue(user_id, coupon.rollout_permille)
    admission_request = AdmissionRequest(request_id, user_id, coupon.coupon_id, coupon.total_quantity, by_worker)
    admission = ADMISSIONS[coupon.admission]
    incoming = prepare(admission, admission_request, request, traceparent or new_traceparent(), may_be_repeat=has_key)
    try:
        outcome = group_committers.for_coupon(coupon).submit(incoming)
    except WaitedTooLong as error:
        raise Unavailable(
            "The requests ahead of this one are waiting for the database. It was not executed: try again in a moment.",
            retry_after=1,
        ) from error
    if outcome.existing is not None:
        return _repeat_answer(outcome.existing, coupon, user_id)
    if outcome.refusal is not None:
        raise outcome.refusal
    if not outcome.new:
        raise RuntimeError(f"the outbox row of request {request_id} was neither inserted nor found")
    return Accepted(request_id, PENDING, coupon.coupon_id, coupon.coupon_type, user_id, outcome.sequence)


def derived_request_id(caller_id: int, operation: str, idempotency_key: str) -> UUID:
    """Derive the request id from an idempotency key.

    It is an HMAC under SECRET_KEY over caller, operation and key, so another caller's key cannot lead to it and it
    cannot be guessed.
    """
    text = f"{caller_id}\n{operation}\n{idempotency_key}".encode()
    digest = bytearray(hmac.digest(settings.SECRET_KEY.encode(), text, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: custom ids (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


def _repeat_answer(existing: ExistingRequest, coupon: CachedCoupon, user_id: int) -> Accepted:
    if not existing.is_for(coupon.coupon_id, user_id):
        raise IdempotencyKeyReused("The Idempotency-Key belongs to a request for another coupon or user.")
    return Accepted(
        existing.request_id, PENDING, existing.coupon_id, existing.coupon_type, existing.user_id, existing.sequence
    )
