"""Cost of a decision of the gate: one per call to Redis, and a hundred per call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

from common.redis_client import redis_connection
from coupons.admission import AdmissionRequest
from coupons.admission.gate.admission import Gate
from coupons.models import Coupon
from kafka_bridge.outbox.writing import new_event_id

from .sale import new_coupon

BY = (1, 100)
ADMITTED, REFUSED = "admitted", "refused"
_DECISIONS = 3_000

_users = count(1)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds per decision: ``total`` as the caller measures it, ``redis`` spent by Redis on the script."""

    total: float
    redis: float


def measure(*, rounds: int) -> dict[tuple[str, int], Cost]:
    """Return medians by decision (admitted or refused) and number of requests per call; measured alternately."""
    costs: dict[tuple[str, int], list[Cost]] = {(what, by): [] for what in (ADMITTED, REFUSED) for by in BY}
    for number in range(rounds + 1):
        for by in BY:
            coupon = new_coupon(_DECISIONS, "gate")
            # This admission loads the gate; the measured ones take the remaining units.
            Gate().admit([_request(coupon)])
            for what, quantity in ((ADMITTED, _DECISIONS - 1), (REFUSED, _DECISIONS)):
                cost = _cost(_requests(coupon, quantity), by, refused=what == REFUSED)
                if number:
                    costs[what, by].append(cost)
    return {
        key: Cost(median(cost.total for cost in measured), median(cost.redis for cost in measured))
        for key, measured in costs.items()
    }


def _cost(requests: Sequence[AdmissionRequest], by: int, *, refused: bool) -> Cost:
    gate = Gate()
    calls = [requests[start : start + by] for start in range(0, len(requests), by)]
    worked, started = _script_microseconds(), time.perf_counter()
    for call in calls:
        gate.admit(call)
    seconds, microseconds = time.perf_counter() - started, _script_microseconds() - worked
    if any((request.refusal is not None) != refused for request in requests):
        raise AssertionError("the gate's decisions do not match its stock")
    return Cost(1e6 * seconds / len(requests), microseconds / len(requests))


def _script_microseconds() -> float:
    """Microseconds that the Redis server has spent on scripts, of all clients."""
    return float(redis_connection().info("commandstats").get("cmdstat_evalsha", {}).get("usec", 0))


def _requests(coupon: Coupon, quantity: int) -> list[AdmissionRequest]:
    return [_request(coupon) for _ in range(quantity)]


def _request(coupon: Coupon) -> AdmissionRequest:
    return AdmissionRequest(new_event_id(), next(_users), coupon.id, coupon.total_quantity)
