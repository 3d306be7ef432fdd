"""Requests at twice the rate that the service sustains: it must refuse the surplus at once and keep its throughput."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devstack import ManagedProcess

from .latency import percentiles
from .load import Outcome, Plan, status_counts
from .load_clients import requests_for
from .sale import Service, new_coupon, service
from .temporary import mark_outbox_published

FACTOR = 2
SECONDS = 10
# So many that none waits for a free connection, which would close the loop.
CONNECTIONS = 4096
_SATURATION_CONNECTIONS = 256
_WARM_UP = 10_000
_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Durations:
    """99th percentile and maximum of durations in seconds."""

    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Overload:
    """Answers to ``rate`` requests per second, where the service accepts ``saturation``.

    ``goodput``: 202 answers per second until the last answer. By status: the number of answers in ``statuses`` (0: the
    connection broke), and their times from the sending and from the moment they were due. ``delay`` is the difference:
    the requests that waited in the client. ``grown``: MB by which the web processes grew at most beyond ``resident``.
    ``client_share``: CPU seconds of the client against those of all processes.
    """

    saturation: float
    rate: float
    goodput: float
    statuses: Counter[int]
    from_sending: dict[int, Durations]
    from_due: dict[int, Durations]
    delay: Durations
    resident: float
    grown: float
    client_share: float


def measure() -> Overload:
    """Measure the rate that web, relay and issuer sustain together, then send ``FACTOR`` times as much."""
    mark_outbox_published()
    with service() as running:
        running.sell(_WARM_UP, connections=_SATURATION_CONNECTIONS)
        running.settle()
        saturation = _WARM_UP / running.sell(_WARM_UP, connections=_SATURATION_CONNECTIONS).answered
        running.settle()
        return _overload(running, saturation)


def _overload(running: Service, saturation: float) -> Overload:
    rate = FACTOR * saturation
    coupon, port = new_coupon(int(rate * SECONDS)), running.server.port
    messages = requests_for(coupon, coupon.total_quantity, port)
    resident, used = running.web_megabytes(), sum(running.used().values())
    with running.client.start(Plan(port, CONNECTIONS, messages, rate, reconnect=True)) as sending:
        peak = _peak(running.web_megabytes, sending)
        outcome = running.client.outcome(sending, 202, 503, 0)
    used = sum(running.used().values()) - used
    statuses = status_counts(outcome)
    sent = [latency - delay for latency, delay in zip(outcome.latencies, outcome.delays, strict=True)]
    return Overload(
        saturation=saturation,
        rate=rate,
        goodput=statuses[202] / outcome.seconds,
        statuses=statuses,
        from_sending=_by_status(outcome, sent),
        from_due=_by_status(outcome, outcome.latencies),
        delay=_durations(outcome.delays),
        resident=resident,
        grown=max(0.0, peak - resident),
        client_share=outcome.cpu / used,
    )


def _peak(megabytes: Callable[[], float], sending: ManagedProcess) -> float:
    """Return the highest value until the client has ended."""
    peak = megabytes()
    while sending.poll() is None:
        peak = max(peak, megabytes())
        time.sleep(_SAMPLE_SECONDS)
    return peak


def _by_status(outcome: Outcome, seconds: Sequence[float]) -> dict[int, Durations]:
    durations: dict[int, list[float]] = {}
    for status, duration in zip(outcome.statuses, seconds, strict=True):
        durations.setdefault(status, []).append(duration)
    return {status: _durations(values) for status, values in sorted(durations.items())}


def _durations(seconds: Sequence[float]) -> Durations:
    return Durations(percentiles(seconds)[99], max(seconds))
