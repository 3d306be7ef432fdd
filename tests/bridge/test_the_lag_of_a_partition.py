"""What a consumer says of the partitions that it holds: where it is, how old the next message is, whether it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from confluent_kafka import Producer
from django.conf import settings
from django.db import OperationalError

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.consuming import partition_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.consuming.partition_lag import PartitionLag
from kafka_bridge.lag import HeldPartition
from kafka_bridge.registry import ConsumerGroup, prefixed
from tests.stub_app.consumer_groups import BOOKINGS, BookingRequest
from tests.stub_app.events import request
from tests.stub_app.routes import REQUESTS, ROUTES
from tests.support.threads import in_another_session

from .scenes import write

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

Report = Callable[[float], Sequence[HeldPartition]]
PARTITIONS = next(route.partitions for route in ROUTES.values() if route.topic == REQUESTS)


@contextmanager
def running(group: ConsumerGroup) -> Iterator[Report]:
    """A consumer of the group in the background; gives what it reports at a time."""
    stop, consumer = StopFlag(), GroupConsumer(group)
    run = in_another_session(lambda: consumer.run(stop))
    try:
        yield lambda now: consumer.report(now).partitions
    finally:
        stop.request()
        run.result(30)


def produce_at(timestamp: float) -> None:
    producer = Producer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    producer.produce(prefixed(REQUESTS), request(1), b"K", timestamp=round(timestamp * 1000))
    assert producer.flush(30) == 0


def busy_one(partitions: Sequence[HeldPartition]) -> HeldPartition | None:
    return next((item for item in partitions if item.lag), None)


def all_at_end(partitions: Sequence[HeldPartition]) -> bool:
    return [item.lag_ms for item in partitions] == [0] * PARTITIONS


def test_partitions_at_their_end_have_no_lag() -> None:
    with running(BOOKINGS) as report:
        wait_until(lambda: all_at_end(report(time.time())), 30, "the lag of some partition is not 0")
        held = report(time.time())
        assert {item.topic for item in held} == {prefixed(REQUESTS)}
        assert [item.partition for item in held] == list(range(PARTITIONS))
        assert {(item.group, item.state) for item in held} == {("bookings", "ok")}


def test_the_lag_is_the_age_of_the_first_message_that_is_not_handled() -> None:
    away = True

    def handle(requests: Sequence[BookingRequest]) -> None:
        if away:
            raise OperationalError("the server is away")

    sent_at = round(time.time()) - 7.0
    produce_at(sent_at)
    produce_at(sent_at + 5)
    with running(replace(BOOKINGS, handle=handle)) as report:
        wait_until(lambda: (held := busy_one(report(sent_at))) is not None and held.state == "retrying", 30, "no wait")
        held = busy_one(report(sent_at + 60))
        assert held is not None
        assert (held.lag_ms, held.lag, held.next_offset, held.end_offset) == (60_000, 2, 0, 2)
        assert held.state_seconds > 0
        away = False
        wait_until(lambda: all_at_end(report(time.time())), 30, "the lag does not end")
        assert {item.state for item in report(time.time())} == {"ok"}


def test_a_batch_that_hangs_grows_older() -> None:
    handling, go_on = threading.Event(), threading.Event()

    def handle(requests: Sequence[BookingRequest]) -> None:
        handling.set()
        assert go_on.wait(60)

    sent_at = round(time.time())
    produce_at(sent_at)
    with running(replace(BOOKINGS, handle=handle)) as report:
        assert handling.wait(30)
        ages = [max(item.lag_ms or 0 for item in report(sent_at + seconds)) for seconds in (1, 100)]
        assert ages == [1000, 100_000]
        go_on.set()
        wait_until(lambda: all_at_end(report(time.time())), 30, "the lag does not end")


def test_markers_and_aborted_messages_are_no_lag(others: Producer) -> None:
    for user_id in (1, 2):
        write(others, request(user_id))
    others.abort_transaction(30)
    with running(BOOKINGS) as report:
        wait_until(lambda: all_at_end(report(time.time())), 30, "the lag of some partition is not 0")
        wait_until(
            lambda: {item.next_offset for item in report(time.time())} == {0, 3}, 30, "the markers are not passed"
        )
        assert all_at_end(report(time.time()))
        assert busy_one(report(time.time())) is None


def test_messages_that_are_not_fetched_age_from_when_they_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(partition_lag, "time", SimpleNamespace(monotonic=lambda: clock.now))
    partition, lag = ("a topic", 0), PartitionLag("bookings")
    lag.measure(partition, next_offset=5, end=9, is_fetched=False)
    clock.now += 3
    lag.measure(partition, next_offset=5, end=12, is_fetched=False)
    assert (lag.unfetched_ms(partition, 5), lag.end(partition)) == (3000, 12)
    # Handled meanwhile: nothing is known yet about the next.
    assert lag.unfetched_ms(partition, 8) == 0
    lag.measure(partition, next_offset=8, end=12, is_fetched=False)
    clock.now += 2
    assert lag.unfetched_ms(partition, 8) == 2000
    lag.measure(partition, next_offset=8, end=12, is_fetched=True)
    assert lag.unfetched_ms(partition, 8) == 0


def test_a_consumer_without_a_partition_reports_none() -> None:
    assert GroupConsumer(BOOKINGS).report(time.time()) == (["bookings"], None, [])
