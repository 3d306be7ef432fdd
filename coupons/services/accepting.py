"""The door: a request that the coupon's admission lets in is taken by one row in the outbox."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import msgspec
from django.conf import settings

from kafka_bridge.contracts import new_traceparent
from kafka_bridge.outbox import new_event_id, stored_payload
from kafka_bridge.pressure import outbox_pressure

from ..admission import ADMISSIONS, Candidate
from ..catalogue import CatalogueEntry, catalogue
from ..errors import CouponNotOpen, IdempotencyKeyReused, NotFound, Unavailable
from ..events import IssueRequested
from ..messages import ISSUE_REQUESTED
from ..models import IssueRequest
from ..worker.share import is_for_worker
from .letting_in import asked, lines

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
    if behind := outbox_pressure.refusal():
        raise Unavailable(behind, retry_after=_RETRY_WHEN_BEHIND)
    coupon = catalogue.get(id_or_type)
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    admission = ADMISSIONS[coupon.admission]
    moment = catalogue.clock.now()
    refusal = coupon.window.refusal(moment)
    if idempotency_key is None:
        request_id = new_event_id()
    else:
        request_id = derived_request_id(caller_id, "issue", idempotency_key)
        # A key outlives its outbox row; and a repeat is answered even when the coupon has closed or sold out since.
        earlier = _ended(request_id) or (_waiting(request_id) if refusal or admission.selective else None)
        if earlier:
            return _repeat(earlier, coupon, user_id)
    if refusal:
        raise CouponNotOpen(refusal)
    request = IssueRequested(
        request_id=request_id,
        user_id=user_id,
        coupon_id=coupon.coupon_id,
        coupon_type=coupon.coupon_type,
        requested_at=moment,
        source=source,
        admission=coupon.admission,
    )
    by_worker = is_for_worker(user_id, coupon.worker_share)
    candidate = Candidate(request_id, user_id, coupon.coupon_id, coupon.total_quantity, by_worker)
    answer = lines.of(coupon).submit(asked(admission, candidate, request, traceparent or new_traceparent()))
    if answer.refusal is not None:
        raise answer.refusal
    if not answer.new:
        waiting = _waiting(request_id) or _ended(request_id)
        if waiting is None:
            raise RuntimeError(f"the outbox row of {request_id} is neither new nor there")
        try:
            return _repeat(waiting, coupon, user_id)
        except IdempotencyKeyReused:
            admission.withdraw([candidate])
            raise
    return Accepted(request_id, coupon.coupon_id, coupon.coupon_type, user_id, answer.sequence)


def derived_request_id(caller_id: int, operation: str, idempotency_key: str) -> UUID:
    """The request id of an idempotency key: nobody else's key, and no guess, leads to it."""
    text = f"{caller_id}\n{operation}\n{idempotency_key}".encode()
    digest = bytearray(hmac.digest(settings.SECRET_KEY.encode(), text, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: ids of one's own making (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


def _repeat(earlier: Accepted, coupon: CatalogueEntry, user_id: int) -> Accepted:
    if (earlier.coupon_id, earlier.user_id) != (coupon.coupon_id, user_id):
        raise IdempotencyKeyReused("The Idempotency-Key belongs to a request for another coupon or user.")
    return earlier


def _waiting(request_id: UUID) -> Accepted | None:
    payload = stored_payload(ISSUE_REQUESTED, request_id)
    if payload is None:
        return None
    request = msgspec.json.decode(payload, type=IssueRequested)
    assert request.coupon_id is not None
    assert request.coupon_type is not None
    return Accepted(request_id, request.coupon_id, request.coupon_type, request.user_id, request.sequence)


def _ended(request_id: UUID) -> Accepted | None:
    row = IssueRequest.objects.filter(request_id=request_id).first()
    if row is None or row.coupon_id is None or row.user_id is None:
        return None
    return Accepted(request_id, row.coupon_id, row.coupon_type, row.user_id)
