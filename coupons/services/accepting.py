"""The door: a request that the coupon's admission lets in is taken by one row in the outbox."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple
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
from ..admission import ADMISSIONS, Admission, Candidate, Outcome, reservations
from ..catalogue import CatalogueEntry, catalogue
from ..errors import CouponNotOpen, DomainError, IdempotencyKeyReused, NotFound, Unavailable
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
    candidate = Candidate(request_id, user_id, coupon.coupon_id, coupon.total_quantity)
    answer = _lines.of(coupon).submit(_Asked(candidate, request, traceparent or new_traceparent()))
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


class _Asked(NamedTuple):
    candidate: Candidate
    request: IssueRequested
    traceparent: str


class _Answer(NamedTuple):
    """``new``: an outbox row was inserted; else it was there, or there is a refusal."""

    refusal: type[DomainError] | None
    sequence: int | None
    new: bool


def _accept_together(admission: Admission, asked: Sequence[_Asked]) -> list[_Answer]:
    """Ask the admission about requests of the same moment, and insert the outbox rows of those that it lets in."""
    outcomes = admission.admit([one.candidate for one in asked])
    answers = [_Answer(outcome.refusal, outcome.sequence, new=False) for outcome in outcomes]
    let_in = [place for place, outcome in enumerate(outcomes) if outcome.refusal is None]
    if not let_in:
        return answers
    written = False
    try:
        with transaction.atomic():
            inserted = _write(admission, [asked[place] for place in let_in], [outcomes[place] for place in let_in])
            # From here on only the commit can fail, and then nobody knows whether it happened.
            written = True
    except BaseException:
        if not written:
            admission.withdraw([asked[place].candidate for place in let_in if outcomes[place].fresh])
        raise
    for place, answer in zip(let_in, inserted, strict=True):
        answers[place] = answer
    _tell(one for one, answer in zip(asked, answers, strict=True) if answer.new)
    admission.withdraw([asked[place].candidate for place in let_in if outcomes[place].fresh and answers[place].refusal])
    return answers


def _write(admission: Admission, asked: Sequence[_Asked], admitted: Sequence[Outcome]) -> list[_Answer]:
    """The rows of requests that were let in, unless the record or an earlier row says otherwise."""
    recorded = admission.record([one.candidate for one in asked], admitted)
    let_in = [place for place, outcome in enumerate(recorded) if outcome.refusal is None]
    inserted = insert_new_rows([_row(asked[place], recorded[place].sequence) for place in let_in]) if let_in else []
    new = {place for place, is_new in zip(let_in, inserted, strict=True) if is_new}
    # A request that another admission let in before, under the same key: it has what it has.
    strays = [asked[place].candidate.request_id for place in let_in if recorded[place].fresh and place not in new]
    if strays:
        reservations.give_back(strays)
    return [_Answer(outcome.refusal, outcome.sequence, place in new) for place, outcome in enumerate(recorded)]


def _row(asked: _Asked, sequence: int | None) -> OutboxRow:
    request = asked.request if sequence is None else msgspec.structs.replace(asked.request, sequence=sequence)
    return outbox_row(message_of(request, traceparent=asked.traceparent))


def _tell(asked: Iterable[_Asked]) -> None:
    request_log.tell_all(
        "request accepted",
        [
            {
                "requestId": one.candidate.request_id,
                "couponType": one.request.coupon_type,
                "userId": one.candidate.user_id,
                "traceparent": one.traceparent,
            }
            for one in asked
        ],
    )


class _Lines:
    """Where requests of the same few milliseconds meet, to share a call, an INSERT and a commit."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], GroupCommit[_Asked, _Answer]] = {}

    def of(self, coupon: CatalogueEntry) -> GroupCommit[_Asked, _Answer]:
        admission = ADMISSIONS[coupon.admission]
        key = (coupon.admission, coupon.coupon_id if admission.selective else 0)
        line = self._lines.get(key)
        if line is None:
            # Whoever waits in a line that is forgotten here is answered all the same.
            if len(self._lines) >= self._MOST:
                self._lines.clear()
            line = self._lines.setdefault(key, GroupCommit(partial(_accept_together, admission)))
        return line


_lines = _Lines()


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
