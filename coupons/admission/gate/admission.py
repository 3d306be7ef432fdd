"""The stock is counted in Redis, where a refusal costs PostgreSQL nothing.

The gate may say no; its yes is provisional, since the issuer decides by PostgreSQL alone. So losing Redis never issues
too much: at worst some are let in for whom there is no piece, and end SOLD_OUT.

The window is not judged here. The door has judged it by the database's time, one clock for all admissions; Redis's own
time only tells how old a reservation is. The total comes with every call, so a restock needs no word to the gate.
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
from .load import load, read_ended
from .redis_keys import LIFETIME_SECONDS, MOST_PER_CALL, keys, run
from .releasing import release, revoke

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_RETRY_AFTER = 1

_FRESH, _REPEAT, _DUPLICATE, _SOLD_OUT = 1, 2, 3, 4
_REFUSALS = {_DUPLICATE: AlreadyIssued, _SOLD_OUT: SoldOut}
# Any reason that is not an issuer's: the reservation goes, and says nothing against the gate.
_WITHDRAWN = "WITHDRAWN"


class Gate(Admission):
    """One call to Redis per group of requests of a coupon."""

    may_refuse = True

    def admit(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """One outcome per candidate. Raises Unavailable while Redis is away or the gate is being loaded."""
        try:
            outcomes: list[AdmissionOutcome] = []
            for start in range(0, len(candidates), MOST_PER_CALL):
                outcomes += _admit_or_load(candidates[start : start + MOST_PER_CALL])
            return outcomes
        except RedisError as error:
            # What an unanswered call took is found by its age. Without the gate the crowd would stand before
            # PostgreSQL, which is what the gate is there to prevent: hence no other way in.
            raise Unavailable("The gate does not answer. Try again in a moment.", retry_after=_RETRY_AFTER) from error

    def confirm(
        self, candidates: Sequence[AdmissionRequest], admitted: Sequence[AdmissionOutcome]
    ) -> list[AdmissionOutcome]:
        recorded = reservations.reserve(candidates, reservations.GATE)
        return [new._replace(sequence=old.sequence) for new, old in zip(recorded, admitted, strict=True)]

    def admit_bulk(self, candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
        """By PostgreSQL first, since nobody may come again for what the gate alone would know of; it is told after."""
        coupon_id = candidates[0].coupon_id
        outcomes, free = reservations.preview(candidates)
        let_in = reservations.fitting(free - reservations.number_uncounted(coupon_id), candidates, outcomes)
        taken = reservations.reserve([candidates[place] for place in let_in], reservations.GATE)
        for place, outcome in zip(let_in, taken, strict=True):
            outcomes[place] = outcome
        booked = [candidates[place] for place, outcome in zip(let_in, taken, strict=True) if outcome.newly_reserved]
        if booked:
            transaction.on_commit(partial(_count, coupon_id, booked), robust=True)
        return [outcome or AdmissionOutcome(SoldOut) for outcome in outcomes]

    def cancel(self, candidates: Sequence[AdmissionRequest]) -> None:
        release([FinishedRequest(one.request_id, one.coupon_id, one.user_id, _WITHDRAWN) for one in candidates])

    def on_finished(self, ended: Sequence[FinishedRequest]) -> None:
        release(ended)

    def revoke(self, coupon_id: int, user_ids: Sequence[int]) -> None:
        revoke(coupon_id, user_ids)


def _count(coupon_id: int, booked: Sequence[AdmissionRequest]) -> None:
    """Tell the gate of requests under way that it did not let in. Best effort: the reconciler adds who is missing."""
    try:
        store.add(coupon_id, [(one.user_id, one.request_id, 0.0) for one in booked])
        # One that has ended meanwhile was told to a gate that did not know it.
        release(read_ended([one.request_id for one in booked]))
    except RedisError as error:
        logger.warning("the gate was not told of %d requests of a batch: %s", len(booked), error)


def _admit_or_load(candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome]:
    coupon_id = candidates[0].coupon_id
    until = time.monotonic() + _WAIT_SECONDS
    while (answers := _ask(candidates)) is None:
        if time.monotonic() > until:
            raise Unavailable("The gate is being loaded. Try again in a moment.", retry_after=_RETRY_AFTER)
        if not load(coupon_id):
            time.sleep(_LOOK_SECONDS)
    return answers


def _ask(candidates: Sequence[AdmissionRequest]) -> list[AdmissionOutcome] | None:
    """None if the gate is not loaded."""
    # Of totals that are all at most a second old the last is the youngest.
    args: list[object] = [candidates[-1].total_quantity, LIFETIME_SECONDS]
    for one in candidates:
        args += (one.user_id, str(one.request_id))
    answers = run("admit.lua", keys(candidates[0].coupon_id), args)
    if answers is None:
        return None
    return [
        AdmissionOutcome(_REFUSALS.get(answer), place or None, newly_reserved=answer == _FRESH)
        for answer, place in zip(answers[::2], answers[1::2], strict=True)
    ]
