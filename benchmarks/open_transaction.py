"""The relay beside a transaction that stays open for minutes: its rate and its memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from statistics import median

from django.db import connection, transaction

from common.processes.lifecycle import StopFlag
from coupons.models import Coupon
from kafka_bridge.outbox.writing import publish
from kafka_bridge.relaying.relay import Relay

from .database_pair import Side
from .relaying import result_event
from .temporary import mark_outbox_published

ROWS_PER_SECOND = 5_000
_ROWS_PER_TRANSACTION = 500
# Of so many seconds the first and the last rates are taken.
_WINDOW = 20


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """Rows per second of the relay's own time and MB resident, before the transaction and at its end."""

    seconds: int
    free: float
    beside: float
    grown: float


def measure(coupon: Coupon, database: str, *, seconds: int) -> OpenTransaction:
    """Publish 5,000 rows a second, for 20 s alone and for ``seconds`` beside a transaction that has written a row."""
    mark_outbox_published()
    relay, other = Relay(), Side(database)
    try:
        relay.relay_batch(StopFlag())
        free = [_second(relay, coupon) for _ in range(_WINDOW)]
        before = _resident_megabytes()
        other.enter(transaction.atomic())
        other.run(lambda: _write(coupon))
        beside = [_second(relay, coupon) for _ in range(seconds)]
        return OpenTransaction(seconds, median(free), median(beside[-_WINDOW:]), _resident_megabytes() - before)
    finally:
        other.close()
        relay.close()


def _second(relay: Relay, coupon: Coupon) -> float:
    """Publish a second's rows, relay them, and wait until the second is over; return the relay's rows per second."""
    started = time.perf_counter()
    for _ in range(0, ROWS_PER_SECOND, _ROWS_PER_TRANSACTION):
        with transaction.atomic():
            publish(result_event(coupon) for _ in range(_ROWS_PER_TRANSACTION))
    sent, relaying = 0, time.perf_counter()
    while sent < ROWS_PER_SECOND:
        sent += relay.relay_batch(StopFlag())
    rate = sent / (time.perf_counter() - relaying)
    time.sleep(max(0.0, 1.0 - (time.perf_counter() - started)))
    return rate


def _write(coupon: Coupon) -> None:
    with connection.cursor() as cursor:
        # The limit of this project ends an idle transaction after a minute; other writers have none.
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    publish([result_event(coupon)])


def _resident_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
