"""Group commit of accepted requests: concurrent requests share one admission call, one INSERT and one commit."""

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

_log_limit = LogLimit()


class IncomingRequest(NamedTuple):
    """A request to accept. ``row`` is its outbox row, None if the row needs a sequence from the admission first.

    ``may_be_repeat``: its id was derived from an Idempotency-Key and may have been accepted before.
    """

    candidate: AdmissionRequest
    request: IssueRequested
    traceparent: str
    row: OutboxRow | None
    may_be_repeat: bool


class AcceptOutcome(NamedTuple):
    """The outcome of accepting one request. ``refusal`` None: it was accepted; ``sequence`` is its place in line.

    ``new``: an outbox row was inserted. ``existing``: the request that was accepted under the same id before; it
    takes precedence over ``refusal``.
    """

    refusal: type[DomainError] | Unavailable | None
    sequence: int | None
    new: bool
    existing: ExistingRequest | None


def prepare(
    admission: Admission, candidate: AdmissionRequest, request: IssueRequested, traceparent: str, *, may_be_repeat: bool
) -> IncomingRequest:
    """Build the item for the group commit. If no sequence is needed, the row is built here, before the group starts."""
    row = None if admission.may_refuse else outbox_row(message_of(request, traceparent=traceparent))
    return IncomingRequest(candidate, request, traceparent, row, may_be_repeat)


def accept_group(admission: Admission, group: Sequence[IncomingRequest]) -> list[AcceptOutcome]:
    """Ask the admission about a group of concurrent requests and insert the outbox rows of the admitted ones.

    Returns one outcome per request, in order. Requests with an Idempotency-Key, admitted or refused, are looked up in
    one query: only PostgreSQL knows whether the key was used.
    """
    try:
        outcomes = admission.admit([item.candidate for item in group])
    except Unavailable as error:
        return _outcomes_without_admission(group, error)
    written = False
    try:
        existing = find_existing_requests({item.candidate.request_id for item in group if item.may_be_repeat})
        accept_outcomes = [
            AcceptOutcome(
                outcome.refusal, outcome.sequence, new=False, existing=existing.get(item.candidate.request_id)
            )
            for item, outcome in zip(group, outcomes, strict=True)
        ]
        admitted_indexes = [
            index
            for index, accept_outcome in enumerate(accept_outcomes)
            if accept_outcome.refusal is None and accept_outcome.existing is None
        ]
        if admitted_indexes:
            with transaction.atomic():
                written_outcomes = _write(
                    admission,
                    [group[index] for index in admitted_indexes],
                    [outcomes[index] for index in admitted_indexes],
                )
                # From here on only the commit can fail. It may have succeeded, unless PostgreSQL reports a rollback.
                written = True
            for index, accept_outcome in zip(admitted_indexes, written_outcomes, strict=True):
                accept_outcomes[index] = accept_outcome
    except BaseException as error:
        if not written or is_rolled_back(error):
            admission.cancel(
                [item.candidate for item, outcome in zip(group, outcomes, strict=True) if outcome.newly_reserved]
            )
        raise
    _log_accepted(item for item, accept_outcome in zip(group, accept_outcomes, strict=True) if accept_outcome.new)
    _release_unused(
        admission,
        [
            (item.candidate, accept_outcome)
            for item, outcome, accept_outcome in zip(group, outcomes, accept_outcomes, strict=True)
            if outcome.newly_reserved and not accept_outcome.new
        ],
    )
    return accept_outcomes


def _outcomes_without_admission(group: Sequence[IncomingRequest], error: Unavailable) -> list[AcceptOutcome]:
    """Answer requests that were accepted before under their key, from PostgreSQL. The others get ``error``."""
    existing = find_existing_requests({item.candidate.request_id for item in group if item.may_be_repeat})
    coupon_type = group[0].request.coupon_type
    refused = len(group) - sum(item.candidate.request_id in existing for item in group)
    # One log line per request would flood the log during a sale.
    if refused and (count := _log_limit.due(coupon_type, refused)):
        logger.warning(
            "coupon %s: 503 for %d requests since the last line, its admission does not answer: %s",
            coupon_type, count, first_line(error.__cause__ or error),
        )  # fmt: skip
    found = [existing.get(item.candidate.request_id) for item in group]
    return [AcceptOutcome(None if request else error, None, new=False, existing=request) for request in found]


def _release_unused(admission: Admission, unused_items: Sequence[tuple[AdmissionRequest, AcceptOutcome]]) -> None:
    """Release what was reserved for requests for which no row was inserted."""
    cancelled, finished = [], []
    for candidate, outcome in unused_items:
        if outcome.existing is None or not outcome.existing.is_for(candidate.coupon_id, candidate.user_id):
            cancelled.append(candidate)
        elif outcome.existing.finished is not None:
            finished.append(outcome.existing.finished)
        # Otherwise a concurrent request inserted the row and owns the reservation until it finishes.
    admission.cancel(cancelled)
    admission.on_finished(finished)


def _write(
    admission: Admission, group: Sequence[IncomingRequest], admitted: Sequence[AdmissionOutcome]
) -> list[AcceptOutcome]:
    """Insert the rows of admitted requests, unless ``confirm`` refuses them or a row already exists."""
    confirmed = admission.confirm([item.candidate for item in group], admitted)
    admitted_indexes = [index for index, outcome in enumerate(confirmed) if outcome.refusal is None]
    inserted = (
        insert_new_rows([_row(group[index], confirmed[index].sequence) for index in admitted_indexes])
        if admitted_indexes
        else []
    )
    new = {index for index, is_new in zip(admitted_indexes, inserted, strict=True) if is_new}
    for_worker = [group[index].candidate.request_id for index in sorted(new) if group[index].candidate.by_worker]
    if for_worker:
        # If Redis is unavailable they are accepted all the same: the worker finds them by their reservations.
        transaction.on_commit(partial(enqueue, for_worker), robust=True)
    # The row already exists: a concurrent request won, or an earlier admission admitted it. Keep its reservation,
    # release ours.
    unused = [
        group[index].candidate.request_id
        for index in admitted_indexes
        if confirmed[index].newly_reserved and index not in new
    ]
    if unused:
        reservations.release(unused)
    repeats = {index: group[index].candidate.request_id for index in admitted_indexes if index not in new}
    existing = find_existing_requests(set(repeats.values()))
    return [
        AcceptOutcome(
            outcome.refusal, outcome.sequence, index in new, existing.get(repeats[index]) if index in repeats else None
        )
        for index, outcome in enumerate(confirmed)
    ]


def _row(item: IncomingRequest, sequence: int | None) -> OutboxRow:
    if item.row is not None:
        return item.row
    request = msgspec.structs.replace(item.request, sequence=sequence)
    row = outbox_row(message_of(request, traceparent=item.traceparent))
    return row_for_transport(row, TRANSPORT) if item.candidate.by_worker else row


def _log_accepted(accepted: Iterable[IncomingRequest]) -> None:
    request_log.log_requests(
        "request accepted",
        [
            {
                "requestId": item.candidate.request_id,
                "couponType": item.request.coupon_type,
                "userId": item.candidate.user_id,
                "traceparent": item.traceparent,
            }
            for item in accepted
        ],
    )


class GroupCommitters:
    """The group committers of this process: one per coupon if the admission may refuse, else one per admission."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._committers: dict[tuple[str, int], GroupCommit[IncomingRequest, AcceptOutcome]] = {}

    def for_coupon(self, coupon: CachedCoupon) -> GroupCommit[IncomingRequest, AcceptOutcome]:
        admission = ADMISSIONS[coupon.admission]
        key = (coupon.admission, coupon.coupon_id if admission.may_refuse else 0)
        committer = self._committers.get(key)
        if committer is None:
            # Requests that wait in a dropped committer still get their outcome.
            if len(self._committers) >= self._MOST:
                self._committers.clear()
            committer = self._committers.setdefault(key, GroupCommit(partial(accept_group, admission)))
        return committer


group_committers = GroupCommitters()
