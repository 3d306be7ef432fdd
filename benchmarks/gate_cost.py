"""What a decision of the gate costs: one per call to Redis, and by the hundred."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

from coupons.admission import AdmissionRequest
from coupons.admission.gate.admission import Gate
from coupons.admission.gate.redis_keys import redis
from coupons.models import Coupon
from kafka_bridge.outbox.writing import new_event_id

from .sale import new_coupon

BY = (1, 100)
LET_IN, REFUSED = "let in", "refused"
_DECISIONS = 3_000

_users = count(1)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds per decision: until the caller has it, and those that Redis worked on the script."""

    whole: float
    redis: float


def measure(*, rounds: int) -> dict[tuple[str, int], Cost]:
    """Medians by what was decided and the number of candidates in a call; the turns alternate."""
    costs: dict[tuple[str, int], list[Cost]] = {(what, by): [] for what in (LET_IN, REFUSED) for by in BY}
    for number in range(rounds + 1):
        for by in BY:
            coupon = new_coupon(_DECISIONS, "gate")
            # The first loads the gate; those let in take the rest.
            Gate().admit([_candidate(coupon)])
            for what, quantity in ((LET_IN, _DECISIONS - 1), (REFUSED, _DECISIONS)):
                cost = _cost(_crowd(coupon, quantity), by, refused=what == REFUSED)
                if number:
                    costs[what, by].append(cost)
    return {
        key: Cost(median(cost.whole for cost in measured), median(cost.redis for cost in measured))
        for key, measured in costs.items()
    }


def _cost(candidates: Sequence[AdmissionRequest], by: int, *, refused: bool) -> Cost:
    gate = Gate()
    calls = [candidates[start : start + by] for start in range(0, len(candidates), by)]
    worked, started = _worked(), time.perf_counter()
    outcomes = [outcome for call in calls for outcome in gate.admit(call)]
    seconds, microseconds = time.perf_counter() - started, _worked() - worked
    if any((outcome.refusal is not None) != refused for outcome in outcomes):
        raise AssertionError("the gate decided otherwise than its stock says")
    return Cost(1e6 * seconds / len(candidates), microseconds / len(candidates))


def _worked() -> float:
    """Microseconds that the server has spent on scripts, whoever sent them."""
    return float(redis().info("commandstats").get("cmdstat_evalsha", {}).get("usec", 0))


def _crowd(coupon: Coupon, quantity: int) -> list[AdmissionRequest]:
    return [_candidate(coupon) for _ in range(quantity)]


def _candidate(coupon: Coupon) -> AdmissionRequest:
    return AdmissionRequest(new_event_id(), next(_users), coupon.id, coupon.total_quantity)
