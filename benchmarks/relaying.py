"""Throughput of the relay, which also reads and marks the outbox, relative to a bare producer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from statistics import median

from django.conf import settings
from django.db import transaction

from common.postgres.clock import isoformat_z
from common.processes.lifecycle import StopFlag
from common.trace_context import new_traceparent
from coupons.events import IssueEnded
from coupons.messages import ISSUE_SUCCEEDED
from coupons.models import Coupon
from kafka_bridge.client import Producer, make_producer
from kafka_bridge.cloudevents import cloud_event_headers
from kafka_bridge.outbox.writing import Message, new_event_id, outbox_row, publish
from kafka_bridge.registry import prefixed
from kafka_bridge.relaying.relay import Relay

from .interleave import Prepare
from .temporary import mark_outbox_published
from .usage import cpu_seconds, listener

BARE = "bare producer"
RELAY = "relay"
_MESSAGES = 30_000
_ROWS_PER_TRANSACTION = 1000


class DatabaseCost:
    """What the relay's turns cost PostgreSQL, if that runs on this machine."""

    def __init__(self) -> None:
        self._server = listener(int(settings.DATABASES["default"]["PORT"] or 5432))
        self._seconds_per_row: list[float] = []

    def now(self) -> float:
        """Return PostgreSQL's CPU seconds so far."""
        return cpu_seconds([self._server]) if self._server else 0.0

    def add(self, seconds: float) -> None:
        """Record the CPU seconds of one turn."""
        self._seconds_per_row.append(seconds / _MESSAGES)

    @property
    def seconds_per_row(self) -> float | None:
        """The median of the turns; None where PostgreSQL runs elsewhere."""
        return median(self._seconds_per_row) if self._server and self._seconds_per_row else None


@contextmanager
def contestants(coupon: Coupon, cost: DatabaseCost) -> Iterator[dict[str, Prepare]]:
    """Yield turns that publish 30,000 events, by the relay and by a bare producer."""
    mark_outbox_published()
    producer, relay = make_producer(), Relay()
    try:
        yield {RELAY: partial(_relay_turn, coupon, relay, cost), BARE: partial(_bare_turn, coupon, producer)}
    finally:
        relay.close()


def _relay_turn(coupon: Coupon, relay: Relay, cost: DatabaseCost) -> Callable[[], int]:
    for _ in range(0, _MESSAGES, _ROWS_PER_TRANSACTION):
        with transaction.atomic():
            publish(result_event(coupon) for _ in range(_ROWS_PER_TRANSACTION))

    def work() -> int:
        sent, before = 0, cost.now()
        while published := relay.relay_batch(StopFlag()):
            sent += published
        cost.add(cost.now() - before)
        if sent != _MESSAGES:
            raise AssertionError(f"{sent} of {_MESSAGES} rows were published")
        return sent

    return work


def _bare_turn(coupon: Coupon, producer: Producer) -> Callable[[], int]:
    messages = []
    for _ in range(_MESSAGES):
        event = result_event(coupon)
        row = outbox_row(event)
        headers = cloud_event_headers(
            event_id=str(event.event_id),
            event_type=event.event_type,
            time=isoformat_z(datetime.now(UTC)),
            traceparent=event.traceparent,
        )
        messages.append((prefixed(row.topic), row.key, row.payload, headers))

    def work() -> int:
        for topic, key, payload, headers in messages:
            producer.produce(topic, value=payload, key=key, headers=headers)
        if unacknowledged := producer.flush(30):
            raise AssertionError(f"{unacknowledged} messages were not acknowledged")
        return len(messages)

    return work


def result_event(coupon: Coupon) -> Message:
    """Return the event of a result."""
    result = IssueEnded(
        request_id=new_event_id(),
        user_id=1_000_000,
        coupon_id=coupon.id,
        coupon_type=coupon.coupon_type,
        status="SUCCESS",
        reason=None,
        user_coupon_id=1_000_000,
        processed_at=datetime.now(UTC),
    )
    return Message(ISSUE_SUCCEEDED, result, traceparent=new_traceparent())
