"""The door: a request is taken by one row in the outbox."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import transaction

from kafka_bridge.group_commit import GroupCommit
from kafka_bridge.outbox import (
    OutboxRow,
    insert_new_rows,
    new_event_id,
    outbox_row,
    stored_payload,
)
from kafka_bridge.pressure import outbox_pressure

from .. import request_log
from ..catalogue import CatalogueEntry, catalogue
from ..errors import CouponNotOpen, IdempotencyKeyReused, NotFound, Unavailable
from ..events import IssueRequested
from ..messages import ISSUE_REQUESTED, message_of
from ..models import IssueRequest

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
    """Accept a request for a coupon (by id or type); its outbox row is all that is written.

    With an idempotency key, the caller's earlier request under it is answered again. Raises NotFound,
    CouponNotOpen, IdempotencyKeyReused, Unavailable, and what the database raises: after a lost connection it is
    unknown whether the request was accepted.
    """
    if behind := outbox_pressure.refusal():
        raise Unavailable(behind, retry_after=_RETRY_WHEN_BEHIND)
    coupon = catalogue.get(id_or_type)
    if coupon is None:
        raise NotFound(f"There is no coupon {id_or_type!r}.")
    moment = catalogue.clock.now()
    refusal = coupon.window.refusal(moment)
    if idempotency_key is None:
        request_id = new_event_id()
    else:
        request_id = derived_request_id(caller_id, "issue", idempotency_key)
        # A key outlives its outbox row; and a repeat is answered even when the coupon has closed since.
        earlier = _ended(request_id) or (_waiting(request_id) if refusal else None)
        if earlier:
            return _repeat(earlier, coupon, user_id)
    if refusal:
        raise CouponNotOpen(refusal)
    message = message_of(
        IssueRequested(
            request_id=request_id,
            user_id=user_id,
            coupon_id=coupon.coupon_id,
            coupon_type=coupon.coupon_type,
            requested_at=moment,
            source=source,
            admission=coupon.admission,
        ),
        traceparent=traceparent or new_traceparent(),
    )
    told = {
        "requestId": request_id,
        "couponType": coupon.coupon_type,
        "userId": user_id,
        "traceparent": message.traceparent,
    }
    if not _acceptances.submit(_Acceptance(outbox_row(message), told)):
        waiting = _waiting(request_id) or _ended(request_id)
        if waiting is None:
            raise RuntimeError(f"the outbox row of {request_id} is neither new nor there")
        return _repeat(waiting, coupon, user_id)
    return Accepted(request_id, coupon.coupon_id, coupon.coupon_type, user_id)


class _Acceptance(NamedTuple):
    """The row of a request, and what its log line tells."""

    row: OutboxRow
    told: dict[str, Any]


def _insert_acceptances(acceptances: Sequence[_Acceptance]) -> Sequence[bool]:
    with transaction.atomic():
        inserted = insert_new_rows([acceptance.row for acceptance in acceptances])
    request_log.tell_all("request accepted", [one.told for one, new in zip(acceptances, inserted, strict=True) if new])
    return inserted


# Requests of the same few milliseconds share one INSERT and one commit; each is answered after that commit.
_acceptances: GroupCommit[_Acceptance, bool] = GroupCommit(_insert_acceptances)


def derived_request_id(caller_id: int, operation: str, idempotency_key: str) -> UUID:
    """The request id of an idempotency key: nobody else's key, and no guess, leads to it."""
    text = f"{caller_id}\n{operation}\n{idempotency_key}".encode()
    digest = bytearray(hmac.digest(settings.SECRET_KEY.encode(), text, hashlib.sha256)[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: ids of one's own making (RFC 9562)
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


def new_traceparent() -> str:
    """A new, sampled trace context (W3C Trace Context, version 00)."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


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
