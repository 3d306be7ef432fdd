"""Throughput and CPU cost of each admission on the same processes: users who get a coupon, and users who are refused.

A first group of users takes every unit of a coupon; a second group of the same size finds it sold out. Gate and reserve
refuse in the answer. The queue accepts, decides and publishes the result, so its refusals count as done when the last
of them is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from uuid import UUID

from django.db.models import F

from coupons.models import Coupon, IssueRequest, RolloutChange
from devstack import wait_until

from .interleave import Rates
from .latency import clock_difference, percentiles, request_ids_of
from .load import Plan
from .load_clients import CONNECTIONS, requests_for
from .sale import Service, await_issued, new_coupon, service
from .temporary import mark_outbox_published

QUEUE = "queue"
USERS = 3_000
RATE_SHARE = 0.4
_WARM_UP = 1_000
_ROUNDS = 2
_SLICES = 2
_SECONDS = 2
_RATE_CONNECTIONS = 256
_RESULT_SECONDS = 120.0
_POLL_SECONDS = 0.02
# Without Kafka: it uses little CPU here, and uses some even when idle.
PAID_FOR = ("web", "postgres", "redis", "relay", "issuer", "worker")


@dataclass(frozen=True, slots=True)
class Variant:
    """An admission and, for the gate, the rollout: the percentage of users whose requests go by the Redis queue."""

    admission: str
    by_worker: int = 0

    def coupon(self, quantity: int) -> Coupon:
        """Create an open coupon with this admission and rollout."""
        coupon = new_coupon(quantity, self.admission)
        if self.by_worker:
            RolloutChange.objects.create(flag=RolloutChange.ONE_COUPON + coupon.coupon_type, percent=self.by_worker)
        return coupon


VARIANTS: dict[str, Variant] = {
    QUEUE: Variant(QUEUE),
    "gate": Variant("gate"),
    "gate, worker 50 %": Variant("gate", by_worker=50),
    "gate, worker 100 %": Variant("gate", by_worker=100),
    "reserve": Variant("reserve"),
}


@dataclass(frozen=True, slots=True)
class Admissions:
    """By name of ``VARIANTS``: requests accepted and refused per second, CPU seconds per 1,000 refused by process kind.

    ``result``: seconds from acceptance to decision by percentile, at ``rate`` requests per second.
    """

    accepted: Rates
    refused: Rates
    cpu: Mapping[str, Mapping[str, float]]
    rate: float
    result: Mapping[str, Mapping[int, float]]


def measure(*, rounds: int) -> Admissions:
    """Measure the variants alternately at full load, then alternately at a constant rate that the slowest sustains."""
    mark_outbox_published()
    accepted: dict[str, list[float]] = {name: [] for name in VARIANTS}
    refused: dict[str, list[float]] = {name: [] for name in VARIANTS}
    cpu: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with service("worker") as running:
        for variant in VARIANTS.values():
            _turn(running, variant, _WARM_UP)
        for _ in range(min(rounds, _ROUNDS)):
            for name, variant in VARIANTS.items():
                accepted_rate, refused_rate, used = _turn(running, variant, USERS)
                accepted[name].append(accepted_rate)
                refused[name].append(refused_rate)
                cpu[name].append(used)
        rate = RATE_SHARE * min(map(median, accepted.values()))
        waited: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(_SLICES):
            for name, variant in VARIANTS.items():
                waited[name] += _times_to_result(running, variant, rate)
    return Admissions(
        Rates(accepted),
        Rates(refused),
        {name: {kind: median(turn[kind] for turn in turns) for kind in turns[0]} for name, turns in cpu.items()},
        rate,
        {name: percentiles(seconds) for name, seconds in waited.items()},
    )


def _turn(running: Service, variant: Variant, users: int) -> tuple[float, float, dict[str, float]]:
    """Return accepted and refused per second and CPU seconds per 1,000 refused, of ``users`` requests each."""
    coupon = variant.coupon(users)
    sale = running.sell_out(coupon)
    plan = Plan(running.server.port, CONNECTIONS, requests_for(coupon, users, running.server.port))
    before = running.used()
    with running.client.start(plan) as sending:
        if variant.admission == "queue":
            outcome = running.client.outcome(sending)
            seconds = _last_decided(request_ids_of(outcome)) - outcome.started
        else:
            seconds = running.client.outcome(sending, 409).seconds
    after = running.used()
    used = {kind: 1000 * (after[kind] - before[kind]) / users for kind in PAID_FOR if kind in after}
    return users / sale.answered, users / seconds, used


def _last_decided(request_ids: Sequence[UUID]) -> float:
    """Wait until all are decided; return the time of the last decision by the wall clock of this process."""
    undecided = list(request_ids)

    def over() -> bool:
        # Query one id, not thousands, while PostgreSQL is being measured.
        if IssueRequest.objects.filter(request_id=undecided[-1]).exists():
            decided = set(IssueRequest.objects.filter(request_id__in=undecided).values_list("request_id", flat=True))
            undecided[:] = [request_id for request_id in undecided if request_id not in decided]
        return not undecided

    wait_until(over, _RESULT_SECONDS, f"requests without a result after {_RESULT_SECONDS:.0f} s", _POLL_SECONDS)
    processed = IssueRequest.objects.filter(request_id__in=request_ids).values_list("processed_at", flat=True)
    return max(processed).timestamp() - clock_difference()


def _times_to_result(running: Service, variant: Variant, rate: float) -> list[float]:
    """Return the seconds from acceptance to decision of every request, both by the database's clock."""
    coupon = variant.coupon(int(rate * _SECONDS))
    port = running.server.port
    plan = Plan(port, _RATE_CONNECTIONS, requests_for(coupon, coupon.total_quantity, port), rate)
    with running.client.start(plan) as sending:
        await_issued(coupon, sending)
        running.client.outcome(sending)
    waited = IssueRequest.objects.filter(coupon_id=coupon.id).values_list(
        F("processed_at") - F("requested_at"), flat=True
    )
    return [time.total_seconds() for time in waited]
