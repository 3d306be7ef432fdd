"""Latency at a sustainable constant rate, from the moment a request was due (no coordinated omission)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
from django.db import connection

from coupons.models import IssueRequest

from .load import Outcome, Plan
from .load_clients import requests_for
from .sale import Service, await_issued, new_coupon, service
from .temporary import mark_outbox_published

SHARE = 0.6
ALONE_RATE = 10.0
_SECONDS = 10
_ALONE_REQUESTS = 300
_WARM_UP = 10_000
_CONNECTIONS = 256
_PERCENTS = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds by percentile at ``rate`` requests per second, which is ``SHARE`` of ``saturation``.

    ``answer`` ends with the answer, ``result`` with the decision (processed_at, corrected by ``clock_difference``).
    ``result_alone`` is of requests that have the service for themselves, ``ALONE_RATE`` a second.
    """

    saturation: float
    rate: float
    answer: dict[int, float]
    result: dict[int, float]
    result_alone: dict[int, float]


class _Accepted(msgspec.Struct, rename="camel"):
    request_id: UUID


def measure() -> Latencies:
    """Measure the rate that web, relay and issuer sustain together, then send ``SHARE`` of it at a constant rate."""
    mark_outbox_published()
    with service() as running:
        running.sell(_WARM_UP)
        saturation = _WARM_UP / running.sell(_WARM_UP).answered
        rate = SHARE * saturation
        answers, results = _at_constant_rate(running, rate, int(rate * _SECONDS))
        running.settle()
        _, alone = _at_constant_rate(running, ALONE_RATE, _ALONE_REQUESTS)
    return Latencies(saturation, rate, percentiles(answers), percentiles(results), percentiles(alone))


def _at_constant_rate(running: Service, rate: float, requests: int) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds to the answer and to the result of each request."""
    coupon = new_coupon(requests)
    port = running.server.port
    plan = Plan(port, _CONNECTIONS, requests_for(coupon, requests, port), rate)
    with running.client.start(plan) as sending:
        await_issued(coupon, sending)
        outcome = running.client.outcome(sending)
    return outcome.latencies, _times_to_result(outcome, rate)


def request_ids_of(outcome: Outcome) -> list[UUID]:
    """Return the ids of accepted requests, in the order of the plan."""
    return [msgspec.json.decode(body, type=_Accepted).request_id for body in outcome.bodies]


def _times_to_result(outcome: Outcome, rate: float) -> list[float]:
    request_ids = request_ids_of(outcome)
    processed = dict(IssueRequest.objects.filter(request_id__in=request_ids).values_list("request_id", "processed_at"))
    started = outcome.started + clock_difference()
    return [
        processed[request_id].timestamp() - (started + number / rate) for number, request_id in enumerate(request_ids)
    ]


def clock_difference() -> float:
    """Return by how many seconds the database's clock is ahead of this process's, to about half a round trip."""
    with connection.cursor() as cursor:
        asked = time.time()
        cursor.execute("SELECT clock_timestamp()")
        answered = time.time()
        (moment,) = cursor.fetchone() or (None,)
    assert isinstance(moment, datetime)
    return moment.timestamp() - (asked + answered) / 2


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Return the 50th, 95th and 99th percentile by percent."""
    ordered = sorted(values)
    return {percent: ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] for percent in _PERCENTS}
