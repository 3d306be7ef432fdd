"""The gate counts the stock in Redis, so that a refusal costs PostgreSQL nothing.

A refusal of the gate is final; an admission is provisional, since the issuer decides by PostgreSQL alone. So losing
Redis never issues too many coupons: at worst, requests without a unit are admitted and fail with SOLD_OUT.

The window is not checked here: the accept API checks it by the database's time, the same clock for all admissions.
Redis's own time only measures the age of reservations. Every call passes the coupon's total, so the gate needs no
notification of a restock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

from django.db import transaction
from redis.exceptions import RedisError

from common.api.errors import Unavailable

from .. import reservations
from ..base import Admission, AdmissionRequest, FinishedRequest
from .load import load, read_finished
from .redis_keys import MOST_PER_CALL
from .releasing import release
from .store import GateStore

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_POLL_SECONDS = 0.02
_RETRY_AFTER = 1

# Not a reason of the issuer: the gate releases the reservation, and it is no evidence of over-admission.
_CANCELLED = "WITHDRAWN"


class Gate(Admission):
    """One call to Redis per group of requests for a coupon."""

    may_refuse = True

    def admit(self, candidates: Sequence[AdmissionRequest]) -> None:
        """Admit or refuse each candidate. Raises Unavailable while Redis is down or the gate is being loaded."""
        try:
            for start in range(0, len(candidates), MOST_PER_CALL):
                _admit_or_load(candidates[start : start + MOST_PER_CALL])
        except RedisError as error:
            # Reservations of a call without a reply are found later by their age. There is no fallback without the
            # gate: it would send the whole crowd to PostgreSQL, which the gate exists to prevent.
            raise Unavailable("The gate does not answer. Try again in a moment.", retry_after=_RETRY_AFTER) from error

    def confirm(self, candidates: Sequence[AdmissionRequest]) -> Sequence[AdmissionRequest]:
        return reservations.reserve(candidates, reservations.GATE)

    def admit_bulk(self, candidates: Sequence[AdmissionRequest]) -> Sequence[AdmissionRequest]:
        """Reserve in PostgreSQL, then add to the gate after the commit.

        Not the gate first: if the commit fails and the bulk issue is not repeated, its entries would leak.
        """
        gate = GateStore(candidates[0].coupon_id)
        wanting, free = reservations.preview(candidates)
        fitting = reservations.fitting(free - reservations.number_uncounted(gate.coupon_id), wanting)
        if inserted := reservations.reserve(fitting, reservations.GATE):
            transaction.on_commit(partial(_add_to_gate, gate, inserted), robust=True)
        return inserted

    def cancel(self, candidates: Sequence[AdmissionRequest]) -> None:
        release(
            [
                FinishedRequest(candidate.request_id, candidate.coupon_id, candidate.user_id, _CANCELLED)
                for candidate in candidates
            ]
        )

    def on_finished(self, finished: Sequence[FinishedRequest]) -> None:
        release(finished)

    def revoke(self, coupon_id: int, user_ids: Sequence[int]) -> None:
        try:
            GateStore(coupon_id).revoke(user_ids)
        except RedisError as error:
            logger.warning("the gate was not updated with revoked coupons: %s", error)


def _add_to_gate(gate: GateStore, newly_reserved: Sequence[AdmissionRequest]) -> None:
    """Add pending requests that the gate did not admit. Best effort: the reconciler adds missing ones."""
    try:
        gate.add([(candidate.user_id, candidate.request_id, 0.0) for candidate in newly_reserved])
        # The gate ignored the results of requests that finished before they were added: apply them now.
        release(read_finished([candidate.request_id for candidate in newly_reserved]))
    except RedisError as error:
        logger.warning("the gate was not updated with %d requests of a bulk issue: %s", len(newly_reserved), error)


def _admit_or_load(candidates: Sequence[AdmissionRequest]) -> None:
    gate = GateStore(candidates[0].coupon_id)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not gate.admit(candidates):
        if time.monotonic() > deadline:
            raise Unavailable("The gate is being loaded. Try again in a moment.", retry_after=_RETRY_AFTER)
        if not load(gate):
            time.sleep(_POLL_SECONDS)
