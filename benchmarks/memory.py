"""Memory of the web processes after many requests against after a tenth of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

from .load import Plan
from .load_clients import requests_for
from .sale import Service, await_issued, new_coupon, service
from .temporary import mark_outbox_published

EARLY_SHARE = 0.1
ADMISSIONS = ("queue", "gate", "reserve")
_CONNECTIONS = 64
_USERS = 10_000
# A request that waits too long on a busy machine is refused by 503.
_ANSWERS = (202, 409, 503)


@dataclass(frozen=True, slots=True)
class Memory:
    """MB of the web processes after so many requests."""

    early_requests: int
    early: float
    requests: int
    late: float


def measure(*, requests: int) -> Memory:
    """Send ``requests`` requests, each of another user, for many coupons of all admissions; half find them sold out.

    The queue's are accepted all the same, and refused by the issuer.
    """
    mark_outbox_published()
    with service() as running:
        admissions = cycle(ADMISSIONS)
        early_requests = _send(running, admissions, int(EARLY_SHARE * requests))
        early = running.web_megabytes()
        all_requests = early_requests + _send(running, admissions, requests - early_requests)
        return Memory(early_requests, early, all_requests, running.web_megabytes())


def _send(running: Service, admissions: Iterator[str], least: int) -> int:
    """Send at least ``least`` requests; return their number."""
    sent = 0
    while sent < least:
        sent += _sell_twice_over(running, next(admissions))
    return sent


def _sell_twice_over(running: Service, admission: str) -> int:
    """Send twice as many requests as a new coupon has units; return their number."""
    coupon, port = new_coupon(_USERS // 2, admission), running.server.port
    with running.client.start(Plan(port, _CONNECTIONS, requests_for(coupon, _USERS, port))) as sending:
        await_issued(coupon, sending)
        running.client.outcome(sending, *_ANSWERS)
    return _USERS
