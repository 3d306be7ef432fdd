"""Requests for other coupons while another session holds one coupon's row and requests for that coupon keep coming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from statistics import median

from django.db import connection, transaction

from coupons.models import Coupon

from .interleave import Rates
from .latency import percentiles
from .load import Outcome, Plan
from .load_clients import CONNECTIONS, requests_for
from .sale import Service, await_issued, new_coupon

# Reserve locks the row itself.
ADMISSIONS = ("queue", "reserve")
LOCK_SECONDS = 10
LOCKED_RATE = 50
OTHER_COUPONS = 8
LOCKED, FREE = "locked", "free"
_WARM_UP = 4_000
# The measured requests should end before the lock does.
_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Locks:
    """Of the requests for other coupons, by ``LOCKED`` and ``FREE``: accepted per second, p99 of the answer in s."""

    rates: Rates
    p99: dict[str, float]


def measure(running: Service, *, rounds: int) -> dict[str, Locks]:
    """Return the measurements by admission of all coupons."""
    return {admission: _locks(running, admission, rounds) for admission in ADMISSIONS}


def _locks(running: Service, admission: str, rounds: int) -> Locks:
    each = int(_SHARE * LOCK_SECONDS * _WARM_UP / running.sell_out(new_coupon(_WARM_UP, admission)).answered)
    each //= OTHER_COUPONS
    outcomes: dict[str, list[Outcome]] = {FREE: [], LOCKED: []}
    for _ in range(rounds):
        for name, turns in outcomes.items():
            running.settle()
            turns.append(_beside_one_coupon(running, admission, each, locked=name == LOCKED))
    return Locks(
        Rates({name: [len(o.statuses) / o.seconds for o in turns] for name, turns in outcomes.items()}),
        {name: median(percentiles(o.latencies)[99] for o in turns) for name, turns in outcomes.items()},
    )


def _beside_one_coupon(running: Service, admission: str, each: int, *, locked: bool) -> Outcome:
    """Send ``each`` requests for every other coupon while requests for one coupon come at a constant rate."""
    port, client = running.server.port, running.new_client("one-coupon")
    others = [new_coupon(each, admission) for _ in range(OTHER_COUPONS)]
    mixed = list(chain.from_iterable(zip(*(requests_for(other, each, port) for other in others), strict=True)))
    coupon = new_coupon(LOCKED_RATE * LOCK_SECONDS, admission)
    requests = requests_for(coupon, coupon.total_quantity, port)
    with ExitStack() as lock:
        if locked:
            lock.enter_context(_lock(coupon))
        with (
            client.start(Plan(port, CONNECTIONS, requests, LOCKED_RATE)) as to_one,
            running.client.start(Plan(port, CONNECTIONS, mixed)) as to_others,
        ):
            with suppress(TimeoutError):
                to_others.wait(LOCK_SECONDS)
            lock.close()
            outcome = running.client.outcome(to_others)
            # With reserve a request for the locked coupon waits in line for a second and is refused.
            client.outcome(to_one, 202, 503)
    for other in others:
        await_issued(other, to_others)
    return outcome


@contextmanager
def _lock(coupon: Coupon) -> Iterator[None]:
    """Hold the coupon's row for as long as the context lasts."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute("SELECT 1 FROM coupons_coupon WHERE id = %s FOR UPDATE", [coupon.id])
        yield
