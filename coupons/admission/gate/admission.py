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

from ...errors import AlreadyIssued, SoldOut
from .. import reservations
from ..base import Admission, AdmissionOutcome, AdmissionRequest, FinishedRequest
from . import store
from .load import load, read_finished
from .redis_keys import LIFETIME_SECONDS, MOST_PER_CALL, keys, run
from .releasing import release, revoke

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_POLL_SECONDS = 0.02
_RETRY_AFTER = 1

_ADMITTED, _REPEAT, _DUPLICATE, _SOLD_OUT = 1, 2, 3, 4
_REFUSALS = {_DUPLICATE: AlreadyIssued, _SOLD_OUT: SoldOut}
# Not a reason of the issuer: the gate releases the reservation, and it is no evidence of over-admission.
_CANCELLED = "WITHDRAWN"


class Gate(Admission):
    """One call to Redis per group of requests for a coupon."""

    may_refuse = True

    def admit(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """Return one outcome per candidate. Raises Unavailable while Redis is down or the gate is being loaded."""
        try:
            outcomes: list[AdmissionOutcome] = []
            for start in range(0, len(candidates), MOST_PER_CALL):
                outcomes += _admit_or_load(candidates[start : start + MOST_PER_CALL])
            return outcomes
        except RedisError as error:
            # Reservations of a call without a reply are found later by their age. There is no fallback without the
            # gate: it would send the whole crowd to PostgreSQL, which the gate exists to prevent.
            raise Unavailable("The gate does not answer. Try again in a moment.", retry_after=_RETRY_AFTER) from error

    def confirm(
        self, candidates: Sequence[AdmissionRequest], admitted: Sequence[AdmissionOutcome]
    ) -> list[AdmissionOutcome]:
        confirmed = reservations.reserve(candidates, reservations.GATE)
        return [
            confirmed_outcome._replace(sequence=admitted_outcome.sequence)
            for confirmed_outcome, admitted_outcome in zip(confirmed, admitted, strict=True)
        ]

    def admit_bulk(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """Reserve in PostgreSQL, then add to the gate after the commit.

        Not the gate first: if the commit fails and the bulk issue is not repeated, its entries would leak.
        """
        coupon_id = candidates[0].coupon_id
        outcomes, free = reservations.preview(candidates)
        fitting_indexes = reservations.fitting(free - reservations.number_uncounted(coupon_id), candidates, outcomes)
        reserved = reservations.reserve([candidates[index] for index in fitting_indexes], reservations.GATE)
        for index, outcome in zip(fitting_indexes, reserved, strict=True):
            outcomes[index] = outcome
        newly_reserved = [
            candidates[index]
            for index, outcome in zip(fitting_indexes, reserved, strict=True)
            if outcome.newly_reserved
        ]
        if newly_reserved:
            transaction.on_commit(partial(_add_to_gate, coupon_id, newly_reserved), robust=True)
        return [outcome or AdmissionOutcome(SoldOut) for outcome in outcomes]

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
        revoke(coupon_id, user_ids)


def _add_to_gate(coupon_id: int, newly_reserved: Sequence[AdmissionRequest]) -> None:
    """Add pending requests that the gate did not admit. Best effort: the reconciler adds missing ones."""
    try:
        store.add(coupon_id, [(candidate.user_id, candidate.request_id, 0.0) for candidate in newly_reserved])
        # The gate ignored the results of requests that finished before they were added: apply them now.
        release(read_finished([candidate.request_id for candidate in newly_reserved]))
    except RedisError as error:
        logger.warning("the gate was not updated with %d requests of a bulk issue: %s", len(newly_reserved), error)


def _admit_or_load(candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
    coupon_id = candidates[0].coupon_id
    deadline = time.monotonic() + _WAIT_SECONDS
    while (outcomes := _call_gate(candidates)) is None:
        if time.monotonic() > deadline:
            raise Unavailable("The gate is being loaded. Try again in a moment.", retry_after=_RETRY_AFTER)
        if not load(coupon_id):
            time.sleep(_POLL_SECONDS)
    return outcomes


def _call_gate(candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome] | None:
    """Return one outcome per candidate, None if the gate is not loaded."""
    # All totals are at most a second old; the last candidate's is the newest.
    args: list[object] = [candidates[-1].total_quantity, LIFETIME_SECONDS]
    for candidate in candidates:
        args += (candidate.user_id, str(candidate.request_id))
    values = run("admit.lua", keys(candidates[0].coupon_id), args)
    if values is None:
        return None
    return [
        AdmissionOutcome(_REFUSALS.get(code), sequence or None, newly_reserved=code == _ADMITTED)
        for code, sequence in zip(values[::2], values[1::2], strict=True)
    ]
