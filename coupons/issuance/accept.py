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

from ..coupon_cache import CachedCoupon, coupon_cache
from ..errors import CouponNotOpen
from ..policy import PENDING
from ..rollout import uses_redis_queue
from ..schemas import Accepted
from .accept_group import IncomingRequest, group_committers

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
    refuse_under_backpressure()
    coupon = coupon_cache.get(id_or_type)
    if coupon is None or not coupon.is_for(user_id):
        raise no_such_coupon(id_or_type)
    incoming = incoming_request(
        coupon, user_id=user_id, caller_id=caller_id, idempotency_key=idempotency_key, traceparent=traceparent
    )
    try:
        group_committers.for_coupon(coupon).submit(incoming)
    except WaitedTooLong as error:
        raise not_executed() from error
    return accepted(incoming)


def refuse_under_backpressure() -> None:
    """Raise Unavailable while the outbox is too far behind."""
    if reason := outbox_backpressure.refusal():
        raise Unavailable(reason, retry_after=_BACKPRESSURE_RETRY_AFTER)


def no_such_coupon(id_or_type: int | str) -> NotFound:
    return NotFound(f"There is no coupon {id_or_type!r}.")


def not_executed() -> Unavailable:
    """Return the refusal of a request that has waited too long for its group commit."""
    return Unavailable(
        "The requests ahead of this one are waiting for the database. It was not executed: try again in a moment.",
        retry_after=1,
    )


def incoming_request(
    coupon: CachedCoupon, *, user_id: int, caller_id: int, idempotency_key: str | None, traceparent: str
) -> IncomingRequest:
    """Prepare a request for ``accept_group``; an empty ``traceparent`` starts a new trace.

    Raises CouponNotOpen, except for a request with an idempotency key: a repeated one gets its answer even if the
    coupon has closed since.
    """
    moment = coupon_cache.clock.now()
    closed = None
    if refusal := coupon.window.refusal(moment):
        closed = CouponNotOpen(refusal)
        if idempotency_key is None:
            raise closed
    return IncomingRequest(
        derived_request_id(caller_id, "issue", idempotency_key) if idempotency_key is not None else new_event_id(),
        user_id,
        coupon.coupon_id,
        coupon.total_quantity,
        uses_redis_queue(user_id, coupon.rollout_permille),
        coupon_type=coupon.coupon_type,
        admission=coupon.admission,
        requested_at=moment,
        traceparent=traceparent or new_traceparent(),
        may_be_repeat=idempotency_key is not None,
        closed=closed,
    )


def accepted(incoming: IncomingRequest) -> Accepted:
    """Return the accepted request. Raises its refusal, IdempotencyKeyReused, or its fault."""
    if incoming.fault is not None:
        raise incoming.fault
    if (existing := incoming.existing) is not None:
        if not existing.is_for(incoming.coupon_id, incoming.user_id):
            raise IdempotencyKeyReused("The Idempotency-Key belongs to a request for another coupon or user.")
        return Accepted(
            existing.request_id, PENDING, existing.coupon_id, existing.coupon_type, existing.user_id, existing.sequence
        )
    if incoming.refusal is not None:
        raise incoming.refusal
    if not incoming.inserted:
        raise RuntimeError(f"the outbox row of request {incoming.request_id} was neither inserted nor found")
    return Accepted(
        incoming.request_id, PENDING, incoming.coupon_id, incoming.coupon_type, incoming.user_id, incoming.sequence
    )


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
