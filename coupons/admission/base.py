"""The interface of admissions: requests with their outcomes, and the base class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple
from uuid import UUID

import msgspec

from common.api.errors import DomainError

from ..events import IssueEnded


class AdmissionRequest(msgspec.Struct, gc=False):
    """A request for an open coupon, and its outcome once its admission has decided.

    ``total_quantity`` is the coupon's, at most a second old. ``by_worker``: its transport is the Redis queue of the
    issue worker instead of Kafka.

    Outcome: ``refusal`` None: it is admitted. ``sequence`` is its place in line, None if the admission assigns none.
    ``newly_reserved``: ``admit`` reserved something for it, which ``cancel`` releases; False for a repeated request.
    """

    request_id: UUID
    user_id: int
    coupon_id: int
    total_quantity: int
    by_worker: bool = False
    refusal: type[DomainError] | DomainError | None = None
    sequence: int | None = None
    newly_reserved: bool = False


class FinishedRequest(NamedTuple):
    """A request that reached its result; ``reason`` None is success."""

    request_id: UUID
    coupon_id: int
    user_id: int
    reason: str | None


def finished_requests(results: Iterable[IssueEnded]) -> list[FinishedRequest]:
    """Convert results for the admissions, leaving out those without a readable coupon and user."""
    return [
        FinishedRequest(result.request_id, result.coupon_id, result.user_id, result.reason)
        for result in results
        if result.coupon_id is not None and result.user_id is not None
    ]


class Admission:
    """The base class of admissions. It admits every request.

    ``admit`` runs first, before any transaction, so that a refusal can spare PostgreSQL. ``confirm`` runs inside the
    transaction that inserts the outbox rows. Both get candidates that are not refused, and set the outcome in them. If
    it is certain that no row was inserted, ``cancel`` releases what ``admit`` reserved; if that is unknown, nothing is
    released.
    """

    # Whether it can refuse. If so, each coupon has its own group commit, so that no coupon waits for another's locks,
    # and all candidates of a call are of one coupon.
    may_refuse: ClassVar[bool] = False

    def admit(self, candidates: Sequence[AdmissionRequest]) -> None:
        """Admit or refuse each of the candidates. A repeated request id is admitted again."""

    def confirm(self, candidates: Sequence[AdmissionRequest]) -> Sequence[AdmissionRequest]:
        """Make the final decision on candidates that ``admit`` admitted, within the caller's transaction.

        Returns those for which it inserted a reservation.
        """
        return ()

    def admit_bulk(self, candidates: Sequence[AdmissionRequest]) -> Sequence[AdmissionRequest]:
        """Reserve what is available for requests of one coupon, within the caller's transaction.

        All of them are accepted: nothing is reserved for a refused request, and the issuer alone decides about it.
        Returns those for which it inserted a reservation.
        """
        self.admit(candidates)
        return self.confirm(candidates)

    def cancel(self, candidates: Sequence[AdmissionRequest]) -> None:
        """Release what ``admit`` reserved. Does not raise on an outage."""

    def on_finished(self, finished: Sequence[FinishedRequest]) -> None:
        """Handle finished requests of this or any other admission, after the commit. Does not raise on an outage."""

    def revoke(self, coupon_id: int, user_ids: Sequence[int]) -> None:
        """Handle units that returned to the stock; their users cannot get the coupon again.

        Does not raise on an outage.
        """
