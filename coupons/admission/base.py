"""What an admission is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple
from uuid import UUID

from common.api.errors import DomainError

from ..events import IssueEnded


class AdmissionRequest(NamedTuple):
    """A request at the door of an open coupon. ``total_quantity`` is the coupon's, at most a second old.

    ``by_worker``: the issue worker carries it to the issuer, and not Kafka.
    """

    request_id: UUID
    user_id: int
    coupon_id: int
    total_quantity: int
    by_worker: bool = False


class AdmissionOutcome(NamedTuple):
    """What became of a candidate. ``refusal`` None: it is let in.

    ``sequence`` is its place in line, None where nobody counts. ``newly_reserved``: a unit was
    reserved for it by this call, which is not so for a request that comes again.
    """

    refusal: type[DomainError] | None = None
    sequence: int | None = None
    newly_reserved: bool = False


class FinishedRequest(NamedTuple):
    """How a request ended; ``reason`` None is success."""

    request_id: UUID
    coupon_id: int
    user_id: int
    reason: str | None


def finished_requests(results: Iterable[IssueEnded]) -> list[FinishedRequest]:
    """The ends that ``results`` tell; what nobody could read concerns no admission."""
    return [
        FinishedRequest(one.request_id, one.coupon_id, one.user_id, one.reason)
        for one in results
        if one.coupon_id is not None and one.user_id is not None
    ]


class Admission:
    """A way to let requests in. This one lets in everybody.

    ``admit`` comes first, before any transaction, so that a refusal can spare PostgreSQL. ``confirm`` comes inside the
    transaction that inserts the outbox rows. If for certain no row came of it, ``cancel`` gives back what ``admit``
    took; if nobody knows, nothing is given back.
    """

    # Whether it ever refuses. Then each coupon has a line of its own, so that no other has to wait for what it waits
    # for: all candidates of a call are of one coupon.
    may_refuse: ClassVar[bool] = False

    def admit(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """One outcome per candidate, in order. The same request id again is let in again."""
        return [AdmissionOutcome()] * len(candidates)

    def confirm(
        self, candidates: Sequence[AdmissionRequest], admitted: Sequence[AdmissionOutcome]
    ) -> list[AdmissionOutcome]:
        """The last word on candidates that ``admit`` let in, within the caller's transaction."""
        return list(admitted)

    def admit_bulk(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """Take what there is for requests of one coupon that are accepted in any case, within the caller's transaction.

        Those it refuses have taken nothing; the issuer decides about them all the same.
        """
        return self.confirm(candidates, self.admit(candidates))

    def cancel(self, candidates: Sequence[AdmissionRequest]) -> None:
        """Give back what ``admit`` took. Does not raise what an outage raises."""

    def on_finished(self, ended: Sequence[FinishedRequest]) -> None:
        """Take note of committed ends of requests, of this or any other admission. Does not raise for an outage."""

    def revoke(self, coupon_id: int, user_ids: Sequence[int]) -> None:
        """Take note that pieces of users went back to the stock; they get no other. Does not raise for an outage."""
