"""Group commit of accepted requests: concurrent requests share one admission call, one INSERT and one commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Generic, TypeVar

from django.db import transaction

from common.api.errors import DomainError, Unavailable
from common.group_commit import GroupCommit
from common.processes.lifecycle import first_line
from common.processes.log_limit import LogLimit
from common.processes.outages import is_rolled_back, is_transient
from kafka_bridge.outbox.transports import row_for_transport
from kafka_bridge.outbox.writing import OutboxRow, insert_new_rows, outbox_row

from .. import request_log
from ..admission import ADMISSIONS, Admission, AdmissionRequest, reservations
from ..coupon_cache import CachedCoupon
from ..events import IssueRequested
from ..messages import message_of
from ..redis_queue import TRANSPORT
from ..redis_queue.enqueue import enqueue
from .idempotency import ExistingRequest, find_existing_requests

logger = logging.getLogger(__name__)

_log_limit = LogLimit()


class IncomingRequest(AdmissionRequest, kw_only=True, gc=False):
    """A request to accept, and its outcome once ``accept_group`` has returned.

    ``may_be_repeat``: its id was derived from an Idempotency-Key and may have been accepted before. ``closed`` set: it
    is refused unless it is a repeat, since the coupon takes no new requests.

    Outcome: ``existing`` is the request that was accepted under the same id before; it takes precedence over
    ``refusal``. Without both, ``inserted``: its outbox row is committed, and ``sequence`` is its place in line.
    ``fault``: the request itself could not be handled, and was not accepted.
    """

    coupon_type: str
    admission: str
    requested_at: datetime
    traceparent: str
    may_be_repeat: bool
    closed: DomainError | None = None
    inserted: bool = False
    existing: ExistingRequest | None = None
    fault: Exception | None = None

    def outbox_row(self) -> OutboxRow:
        """Build the outbox row; the admission has set ``sequence``."""
        request = IssueRequested(
            request_id=self.request_id,
            user_id=self.user_id,
            coupon_id=self.coupon_id,
            coupon_type=self.coupon_type,
            requested_at=self.requested_at,
            source="API",
            admission=self.admission,
            sequence=self.sequence,
        )
        row = outbox_row(message_of(request, traceparent=self.traceparent))
        return row_for_transport(row, TRANSPORT) if self.by_worker else row


class _NotAccepted(Exception):
    """It is certain that no request of the group was accepted; ``error`` is the reason."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def accept_group(admission: Admission, group: Sequence[IncomingRequest]) -> Sequence[IncomingRequest]:
    """Ask the admission about a group of concurrent requests and insert the outbox rows of the admitted ones.

    Returns ``group`` with the outcomes in its requests. Requests with an Idempotency-Key, admitted or refused, are
    looked up in one query: only PostgreSQL knows whether the key was used. A request that cannot be handled fails
    alone: the group is split and tried again. Raises outages, and whatever the commit raises: then the outcome of every
    request is unknown.
    """
    try:
        _accept(admission, group)
    except _NotAccepted as failure:
        if is_transient(failure.error):
            raise failure.error from failure.error.__cause__
        if len(group) == 1:
            group[0].fault = failure.error
        else:
            middle = len(group) // 2
            for half in (group[:middle], group[middle:]):
                _accept_half(admission, half)
    return group


def _accept_half(admission: Admission, half: Sequence[IncomingRequest]) -> None:
    """Accept a half; an error concerns this half alone, since the other one may be committed."""
    try:
        accept_group(admission, half)
    except Exception as error:
        for item in half:
            item.fault = error


def _accept(admission: Admission, group: Sequence[IncomingRequest]) -> None:
    """Accept the group in one transaction. Raises _NotAccepted, or an error after which the outcome is unknown."""
    may_be_committed = False
    try:
        _admit(admission, group)
        existing = find_existing_requests({item.request_id for item in group if item.may_be_repeat})
        for item in group:
            item.existing = existing.get(item.request_id)
        if admitted := [item for item in group if item.refusal is None and item.existing is None]:
            with transaction.atomic():
                _write(admission, admitted)
                # From here on only the commit can fail. It may have succeeded, unless PostgreSQL reports a rollback.
                may_be_committed = True
    except BaseException as error:
        if may_be_committed and not is_rolled_back(error):
            raise
        admission.cancel([item for item in group if item.newly_reserved])
        if isinstance(error, Exception):
            raise _NotAccepted(error) from error
        raise
    _log_accepted([item for item in group if item.inserted])
    _log_unavailable([item for item in group if isinstance(item.refusal, Unavailable) and item.existing is None])
    _release_unused(admission, [item for item in group if item.newly_reserved and not item.inserted])


def _admit(admission: Admission, group: Sequence[IncomingRequest]) -> None:
    """Ask the admission about the requests that are not refused already; if it does not answer, all are refused."""
    for item in group:
        item.refusal, item.sequence, item.newly_reserved, item.inserted = item.closed, None, False, False
    candidates = [item for item in group if item.refusal is None]
    if not candidates:
        return
    try:
        admission.admit(candidates)
    except Unavailable as error:
        for item in candidates:
            item.refusal = error


def _write(admission: Admission, admitted: Sequence[IncomingRequest]) -> None:
    """Insert the rows of admitted requests, unless ``confirm`` refuses them or a row already exists."""
    reserved = {item.request_id for item in admission.confirm(admitted)}
    confirmed = [item for item in admitted if item.refusal is None]
    if not confirmed:
        return
    for item, is_new in zip(confirmed, insert_new_rows([item.outbox_row() for item in confirmed]), strict=True):
        item.inserted = is_new
    if for_worker := [item.request_id for item in confirmed if item.inserted and item.by_worker]:
        # If Redis is unavailable they are accepted all the same: the worker finds them by their reservations.
        transaction.on_commit(partial(enqueue, for_worker), robust=True)
    # The row already exists: a concurrent request won, or an earlier admission admitted it. Keep its reservation,
    # release ours.
    if unused := reserved.difference(item.request_id for item in confirmed if item.inserted):
        reservations.release(unused)
    existing = find_existing_requests({item.request_id for item in confirmed if not item.inserted})
    for item in confirmed:
        item.existing = existing.get(item.request_id) if not item.inserted else None


def _release_unused(admission: Admission, unused: Sequence[IncomingRequest]) -> None:
    """Release what was reserved for requests for which no row was inserted."""
    cancelled, finished = [], []
    for item in unused:
        if item.existing is None or not item.existing.is_for(item.coupon_id, item.user_id):
            cancelled.append(item)
        elif item.existing.finished is not None:
            finished.append(item.existing.finished)
        # Otherwise a concurrent request inserted the row and owns the reservation until it finishes.
    admission.cancel(cancelled)
    admission.on_finished(finished)


def _log_unavailable(refused: Sequence[IncomingRequest]) -> None:
    # One log line per request would flood the log during a sale.
    if refused and (count := _log_limit.due(refused[0].coupon_type, len(refused))):
        error = refused[0].refusal
        assert isinstance(error, Unavailable)
        logger.warning(
            "coupon %s: 503 for %d requests since the last line, its admission does not answer: %s",
            refused[0].coupon_type, count, first_line(error.__cause__ or error),
        )  # fmt: skip


def _log_accepted(accepted: Sequence[IncomingRequest]) -> None:
    request_log.log_requests(
        "request accepted",
        [
            {
                "requestId": item.request_id,
                "couponType": item.coupon_type,
                "userId": item.user_id,
                "traceparent": item.traceparent,
            }
            for item in accepted
        ],
    )


Committer = TypeVar("Committer")


class GroupCommitters(Generic[Committer]):
    """Group committers, made by ``create``: one per coupon if its admission may refuse, else one per admission."""

    _MOST = 10_000

    def __init__(self, create: Callable[[Admission], Committer]) -> None:
        self._create = create
        self._committers: dict[tuple[str, int], Committer] = {}

    def for_coupon(self, coupon: CachedCoupon) -> Committer:
        admission = ADMISSIONS[coupon.admission]
        key = (coupon.admission, coupon.coupon_id if admission.may_refuse else 0)
        committer = self._committers.get(key)
        if committer is None:
            # Requests that wait in a dropped committer still get their outcome.
            if len(self._committers) >= self._MOST:
                self._committers.clear()
            committer = self._committers.setdefault(key, self._create(admission))
        return committer


def _in_threads(admission: Admission) -> GroupCommit[IncomingRequest, IncomingRequest]:
    return GroupCommit(partial(accept_group, admission))


# Of requests that are accepted in threads; the intake has its own.
group_committers = GroupCommitters(_in_threads)
