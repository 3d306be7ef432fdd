"""Requests of the same moment share the question to their admission, one INSERT and one commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from django.db import transaction

from common.api.errors import DomainError, Unavailable
from common.group_commit import GroupCommit
from common.processes.lifecycle import first_line
from common.processes.log_limit import LogLimit
from common.processes.outages import is_rolled_back
from kafka_bridge.outbox.transports import row_for_transport
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows, outbox_row

from .. import request_log
from ..admission import ADMISSIONS, Admission, AdmissionOutcome, AdmissionRequest, reservations
from ..coupon_cache import CachedCoupon
from ..events import IssueRequested
from ..messages import message_of
from ..redis_queue import TRANSPORT
from ..redis_queue.enqueue import enqueue
from .idempotency import ExistingRequest, find_existing_requests

logger = logging.getLogger(__name__)

_unavailable = LogLimit()


class IncomingRequest(NamedTuple):
    """A request at the door; ``row`` is its outbox row if nothing of it is still to be known.

    ``may_be_repeat``: its id was derived, and may have been accepted before.
    """

    candidate: AdmissionRequest
    request: IssueRequested
    traceparent: str
    row: OutboxRow | None
    may_be_repeat: bool


class AcceptOutcome(NamedTuple):
    """``earlier`` is what was accepted under the id before, and counts whatever the refusal.

    ``new``: an outbox row was inserted.
    """

    refusal: type[DomainError] | Unavailable | None
    sequence: int | None
    new: bool
    earlier: ExistingRequest | None


def prepare(
    admission: Admission, candidate: AdmissionRequest, request: IssueRequested, traceparent: str, *, may_be_repeat: bool
) -> IncomingRequest:
    """What goes into a line. Without a place in line the row is made here, and not while others wait."""
    row = None if admission.may_refuse else outbox_row(message_of(request, traceparent=traceparent))
    return IncomingRequest(candidate, request, traceparent, row, may_be_repeat)


def accept_group(admission: Admission, group: Sequence[IncomingRequest]) -> list[AcceptOutcome]:
    """Ask the admission about requests of the same moment, and insert the outbox rows of those that it lets in.

    Whether a derived id was accepted before only PostgreSQL knows, also of one that is refused: one read for all.
    """
    try:
        outcomes = admission.admit([one.candidate for one in group])
    except Unavailable as error:
        return _answers_without_admission(group, error)
    written = False
    try:
        earlier = find_existing_requests({one.candidate.request_id for one in group if one.may_be_repeat})
        answers = [
            AcceptOutcome(outcome.refusal, outcome.sequence, new=False, earlier=earlier.get(one.candidate.request_id))
            for one, outcome in zip(group, outcomes, strict=True)
        ]
        let_in = [place for place, one in enumerate(answers) if one.refusal is None and one.earlier is None]
        if let_in:
            with transaction.atomic():
                told = _write(admission, [group[place] for place in let_in], [outcomes[place] for place in let_in])
                # From here on only the commit can fail: unless PostgreSQL says so itself, it may have happened.
                written = True
            for place, answer in zip(let_in, told, strict=True):
                answers[place] = answer
    except BaseException as error:
        if not written or is_rolled_back(error):
            admission.cancel(
                [one.candidate for one, outcome in zip(group, outcomes, strict=True) if outcome.newly_reserved]
            )
        raise
    _tell(one for one, answer in zip(group, answers, strict=True) if answer.new)
    _give_back(
        admission,
        [
            (one.candidate, answer)
            for one, outcome, answer in zip(group, outcomes, answers, strict=True)
            if outcome.newly_reserved and not answer.new
        ],
    )
    return answers


def _answers_without_admission(group: Sequence[IncomingRequest], error: Unavailable) -> list[AcceptOutcome]:
    """What PostgreSQL alone can answer: requests accepted before under their key. The others are unavailable."""
    earlier = find_existing_requests({one.candidate.request_id for one in group if one.may_be_repeat})
    coupon_type = group[0].request.coupon_type
    refused = len(group) - sum(one.candidate.request_id in earlier for one in group)
    # A line per request would be as many lines as the crowd has requests.
    if refused and (number := _unavailable.due(coupon_type, refused)):
        logger.warning(
            "coupon %s: 503 for %d requests since the last line, its admission does not answer: %s",
            coupon_type, number, first_line(error.__cause__ or error),
        )  # fmt: skip
    found = [earlier.get(one.candidate.request_id) for one in group]
    return [AcceptOutcome(None if one else error, None, new=False, earlier=one) for one in found]


def _give_back(admission: Admission, unused: Sequence[tuple[AdmissionRequest, AcceptOutcome]]) -> None:
    """What was taken for requests of which no row came."""
    withdrawn, ended = [], []
    for candidate, answer in unused:
        if answer.earlier is None or not answer.earlier.is_for(candidate.coupon_id, candidate.user_id):
            withdrawn.append(candidate)
        elif answer.earlier.ended is not None:
            ended.append(answer.earlier.ended)
        # Else somebody else has inserted its row, and what was taken is its own until it ends.
    admission.cancel(withdrawn)
    admission.on_finished(ended)


def _write(
    admission: Admission, group: Sequence[IncomingRequest], admitted: Sequence[AdmissionOutcome]
) -> list[AcceptOutcome]:
    """The rows of requests that were let in, unless the record or an earlier row says otherwise."""
    recorded = admission.confirm([one.candidate for one in group], admitted)
    let_in = [place for place, outcome in enumerate(recorded) if outcome.refusal is None]
    inserted = insert_new_rows([_row(group[place], recorded[place].sequence) for place in let_in]) if let_in else []
    new = {place for place, is_new in zip(let_in, inserted, strict=True) if is_new}
    for_worker = [group[place].candidate.request_id for place in sorted(new) if group[place].candidate.by_worker]
    if for_worker:
        # With Redis away they are accepted all the same: the worker finds them by their reservations.
        transaction.on_commit(partial(enqueue, for_worker), robust=True)
    # Somebody was faster under the same key, or another admission let it in before: it has what it has.
    strays = [
        group[place].candidate.request_id for place in let_in if recorded[place].newly_reserved and place not in new
    ]
    if strays:
        reservations.release(strays)
    repeats = {place: group[place].candidate.request_id for place in let_in if place not in new}
    earlier = find_existing_requests(set(repeats.values()))
    return [
        AcceptOutcome(
            outcome.refusal, outcome.sequence, place in new, earlier.get(repeats[place]) if place in repeats else None
        )
        for place, outcome in enumerate(recorded)
    ]


def _row(one: IncomingRequest, sequence: int | None) -> OutboxRow:
    if one.row is not None:
        return one.row
    request = msgspec.structs.replace(one.request, sequence=sequence)
    row = outbox_row(message_of(request, traceparent=one.traceparent))
    return row_for_transport(row, TRANSPORT) if one.candidate.by_worker else row


def _tell(accepted: Iterable[IncomingRequest]) -> None:
    request_log.log_requests(
        "request accepted",
        [
            {
                "requestId": one.candidate.request_id,
                "couponType": one.request.coupon_type,
                "userId": one.candidate.user_id,
                "traceparent": one.traceparent,
            }
            for one in accepted
        ],
    )


class GroupCommitters:
    """Where requests of the same few milliseconds meet, to share a call, an INSERT and a commit."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], GroupCommit[IncomingRequest, AcceptOutcome]] = {}

    def for_coupon(self, coupon: CachedCoupon) -> GroupCommit[IncomingRequest, AcceptOutcome]:
        admission = ADMISSIONS[coupon.admission]
        key = (coupon.admission, coupon.coupon_id if admission.may_refuse else 0)
        line = self._lines.get(key)
        if line is None:
            # Whoever waits in a line that is forgotten here is answered all the same.
            if len(self._lines) >= self._MOST:
                self._lines.clear()
            line = self._lines.setdefault(key, GroupCommit(partial(accept_group, admission)))
        return line


group_committers = GroupCommitters()
