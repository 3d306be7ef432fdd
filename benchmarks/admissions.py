"""What each admission takes, refuses and costs: the crowd that comes, and the crowd after it, on the same processes.

The one fills a coupon to its last piece. The other finds it sold out: a gate and a reservation refuse at once, whereas
a queue accepts, decides and tells, so that its refusals count when the last of them is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from uuid import UUID

from django.db.models import F
from waffle.models import Flag

from coupons.models import Coupon, IssueRequest
from coupons.redis_queue import queue
from coupons.rollout import FLAG
from devstack import wait_until

from .interleave import Rates
from .latency import clock_difference, percentiles, request_ids_of
from .load import Plan
from .load_clients import CONNECTIONS, requests_for
from .sale import Service, await_issued, new_coupon, service
from .temporary import settle_outbox

QUEUE = "queue"
USERS = 3_000
RATE_SHARE = 0.4
_WARM_UP = 1_000
_ROUNDS = 2
_SLICES = 2
_SECONDS = 2
_RATE_CONNECTIONS = 256
_RESULT_SECONDS = 120.0
_LOOK_SECONDS = 0.02
# Kafka is left out: what it uses here is little, and it never rests.
PAID_FOR = ("web", "postgres", "redis", "relay", "issuer", "worker")


@dataclass(frozen=True, slots=True)
class Way:
    """An admission, and of the gate the percentage of users whose requests the issue worker carries."""

    admission: str
    by_worker: int = 0

    def coupon(self, quantity: int) -> Coupon:
        """A new open coupon that lets requests in this way."""
        coupon = new_coupon(quantity, self.admission)
        if self.by_worker:
            # A percentage has two digits before its point.
            share = {"everyone": True} if self.by_worker == 100 else {"percent": self.by_worker}
            Flag.objects.create(name=f"{FLAG}-{coupon.coupon_type}", **share)
        return coupon


WAYS: dict[str, Way] = {
    QUEUE: Way(QUEUE),
    "gate": Way("gate"),
    "gate, worker 50 %": Way("gate", by_worker=50),
    "gate, worker 100 %": Way("gate", by_worker=100),
    "reserve": Way("reserve"),
}


@dataclass(frozen=True, slots=True)
class Admissions:
    """Per name of ``WAYS``: requests accepted and refused a second, CPU seconds per 1,000 refused by kind of process.

    ``result`` are the seconds from acceptance to decision by percentile, at ``rate`` requests a second.
    """

    accepted: Rates
    refused: Rates
    cpu: Mapping[str, Mapping[str, float]]
    rate: float
    result: Mapping[str, Mapping[int, float]]


def measure(*, rounds: int) -> Admissions:
    """Let every way have its turns, then, by turns again, a constant rate that the slowest can keep up."""
    _refuse_company()
    settle_outbox()
    accepted: dict[str, list[float]] = {name: [] for name in WAYS}
    refused: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with service("worker") as running:
        for way in WAYS.values():
            _turn(running, way, _WARM_UP)
        for _ in range(min(rounds, _ROUNDS)):
            for name, way in WAYS.items():
                taken, turned_away, used = _turn(running, way, USERS)
                accepted[name].append(taken)
                refused[name].append(turned_away)
                cpu[name].append(used)
        rate = RATE_SHARE * min(map(median, accepted.values()))
        waited: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(_SLICES):
            for name, way in WAYS.items():
                waited[name] += _times_to_result(running, way, rate)
    return Admissions(
        Rates(accepted),
        Rates(refused),
        {name: {kind: median(turn[kind] for turn in turns) for kind in turns[0]} for name, turns in cpu.items()},
        rate,
        {name: percentiles(seconds) for name, seconds in waited.items()},
    )


def _turn(running: Service, way: Way, users: int) -> tuple[float, float, dict[str, float]]:
    """Accepted and refused per second, and CPU seconds per 1,000 refused, of two crowds of ``users``."""
    coupon = way.coupon(users)
    sale = running.sell_out(coupon)
    plan = Plan(running.server.port, CONNECTIONS, requests_for(coupon, users, running.server.port))
    before = running.used()
    with running.client.start(plan) as sending:
        if way.admission == "queue":
            outcome = running.client.outcome(sending)
            seconds = _last_decided(request_ids_of(outcome)) - outcome.started
        else:
            seconds = running.client.outcome(sending, 409).seconds
    after = running.used()
    used = {kind: 1000 * (after[kind] - before[kind]) / users for kind in PAID_FOR if kind in after}
    return users / sale.answered, users / seconds, used


def _last_decided(request_ids: Sequence[UUID]) -> float:
    """Wait until all are decided; the wall clock of this process at the last decision."""
    undecided = list(request_ids)

    def over() -> bool:
        # A look at one, not at thousands: PostgreSQL is being measured.
        if IssueRequest.objects.filter(request_id=undecided[-1]).exists():
            decided = set(IssueRequest.objects.filter(request_id__in=undecided).values_list("request_id", flat=True))
            undecided[:] = [request_id for request_id in undecided if request_id not in decided]
        return not undecided

    wait_until(over, _RESULT_SECONDS, f"requests waited for {_RESULT_SECONDS:.0f} s", _LOOK_SECONDS)
    processed = IssueRequest.objects.filter(request_id__in=request_ids).values_list("processed_at", flat=True)
    return max(processed).timestamp() - clock_difference()


def _times_to_result(running: Service, way: Way, rate: float) -> list[float]:
    """Seconds from acceptance to decision of every request, both by the database's clock."""
    coupon = way.coupon(int(rate * _SECONDS))
    port = running.server.port
    plan = Plan(port, _RATE_CONNECTIONS, requests_for(coupon, coupon.total_quantity, port), rate)
    with running.client.start(plan) as sending:
        await_issued(coupon, sending)
        running.client.outcome(sending)
    waited = IssueRequest.objects.filter(coupon_id=coupon.id).values_list(
        F("processed_at") - F("requested_at"), flat=True
    )
    return [time.total_seconds() for time in waited]


def _refuse_company() -> None:
    """Raise AssertionError if other issue workers use this Redis: each would drop what it took of the other's."""
    if queue.redis().exists(queue.QUEUE, queue.WORKERS):
        raise AssertionError("other issue workers use this Redis: give REDIS_URL an index of its own, such as .../9")
