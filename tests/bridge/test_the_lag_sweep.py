"""The lag of groups that no process reports is read from Kafka, without joining them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from devstack import wait_until
from kafka_bridge import client
from kafka_bridge.client import ensure_topics
from kafka_bridge.lag import Place, lag_by_partition
from kafka_bridge.models import ProcessHeartbeat, SweptPartition
from kafka_bridge.operating.lag_sweep import LagSweep
from kafka_bridge.registry import ConsumerGroup, prefixed
from tests.stub_app.consumer_groups import BOOKINGS, NOTICES
from tests.stub_app.events import request
from tests.stub_app.routes import BOOKING_REQUESTED, REQUESTS
from tests.support.kafka import committed_offsets, consume_everything, lose_topics, produce

from .scenes import KEY, OTHER_KEY, lag, write

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]


@pytest.fixture(autouse=True)
def _every_partition_has_a_leader(topics: str) -> None:
    """A new topic has none for a moment: this request waits for them."""
    lag()


# A second group on the topic of the bookings.
OTHERS = replace(NOTICES, event_types=(BOOKING_REQUESTED,))


def sweep_of(*groups: ConsumerGroup) -> LagSweep:
    return LagSweep(lambda: groups)


def behind() -> list[tuple[str, int, int]]:
    """Group, messages and whole seconds of each partition that is behind."""
    found = [item for item in lag_by_partition() if item.messages]
    return [(item.place.group, item.messages, item.milliseconds // 1000) for item in found]


def when_caught_up(sweep: LagSweep) -> None:
    """Sweep until nothing is behind: the marker of a transaction is written after its end was acknowledged."""

    def is_caught_up() -> bool:
        sweep.look()
        return behind() == []

    wait_until(is_caught_up, 30, "the marker counts as lag")


def heartbeat(partitions: range, lag_ms: int | None = 7, **fields: Any) -> ProcessHeartbeat:
    """A living process that holds these partitions of the bookings; ``lag_ms`` None: it does not know the lag."""
    now = timezone.now()
    held = [
        {
            "group": "bookings",
            "topic": prefixed(REQUESTS),
            "partition": number,
            "lag": 1,
            "lagMs": lag_ms,
            "state": "ok",
        }
        for number in partitions
    ]
    values = {"role": "consumer", "host": "here", "pid": 1, "started_at": now, "seen_at": now, "turned_at": now}
    return ProcessHeartbeat.objects.create(id=uuid4(), partitions=held, **values | fields)


# What counts


def test_a_group_that_never_ran_is_behind_from_the_first_message() -> None:
    produce(REQUESTS, [request(1)], key=KEY, seconds_ago=60)
    produce(REQUESTS, [request(2), request(3)], key=KEY)
    sweep_of(BOOKINGS).look()
    ((group, messages, seconds),) = behind()
    assert (group, messages) == ("bookings", 3)
    assert 60 <= seconds < 90
    assert {item.reported_by for item in lag_by_partition()} == {"sweep"}
    assert len(lag_by_partition()) == 5
    assert set(committed_offsets(BOOKINGS.group_id, REQUESTS).values()) == {0}


def test_a_group_that_stopped_is_behind_from_its_first_unhandled_message() -> None:
    produce(REQUESTS, [request(1)], key=KEY, seconds_ago=3600)
    consume_everything(BOOKINGS)
    sweep = sweep_of(BOOKINGS)
    sweep.look()
    assert behind() == []
    produce(REQUESTS, [request(2)], key=KEY, seconds_ago=60)
    sweep.look()
    ((_, messages, seconds),) = behind()
    assert messages == 1
    assert 60 <= seconds < 90
    consume_everything(BOOKINGS)
    sweep.look()
    assert behind() == []


def test_groups_of_one_topic_are_behind_each_from_its_own_offset() -> None:
    produce(REQUESTS, [request(1)], key=KEY, seconds_ago=600)
    consume_everything(BOOKINGS)
    produce(REQUESTS, [request(2)], key=KEY, seconds_ago=60)
    sweep_of(BOOKINGS, OTHERS).look()
    (one, other) = behind()
    assert one[:2] == ("bookings", 1)
    assert 60 <= one[2] < 90
    assert other[:2] == ("notices", 2)
    assert 600 <= other[2] < 630


def test_messages_and_markers_of_an_aborted_transaction_are_no_lag(others: Producer) -> None:
    write(others, request(1))
    write(others, request(2), OTHER_KEY)
    others.abort_transaction(30)
    sweep = sweep_of(BOOKINGS)
    when_caught_up(sweep)
    assert not SweptPartition.objects.exclude(oldest_at=None).exists()
    produce(REQUESTS, [request(3)], key=KEY, seconds_ago=60)
    sweep.look()
    ((_, _, seconds),) = behind()
    assert 60 <= seconds < 90


def test_what_waits_for_an_open_transaction_is_lag_until_that_is_aborted(others: Producer) -> None:
    write(others, request(1))
    sweep = sweep_of(BOOKINGS)
    sweep.look()
    (first,) = [item for item in lag_by_partition() if item.messages]
    assert first.messages == 1
    sweep.look()
    (second,) = [item for item in lag_by_partition() if item.messages]
    assert second.milliseconds > first.milliseconds
    others.abort_transaction(30)
    when_caught_up(sweep)


def test_a_topic_that_does_not_exist_is_no_error(settings: Settings) -> None:
    produce(REQUESTS, [request(1)])
    sweep = sweep_of(BOOKINGS)
    sweep.look()
    assert len(behind()) == 1
    lose_topics(REQUESTS)
    sweep.look()
    assert lag_by_partition() == []
    # The topic is made anew, and the fixture deletes it.
    ensure_topics(settings.KAFKA_ROUTES)
    lag()
    produce(REQUESTS, [request(1)], seconds_ago=60)
    sweep.look()
    assert [seconds >= 60 for *_, seconds in behind()] == [True]


# What it leaves alone


def test_only_partitions_that_no_living_process_reports_are_read() -> None:
    produce(REQUESTS, [request(1)], key=KEY, seconds_ago=60)
    sweep = sweep_of(BOOKINGS)
    sweep.look()
    assert SweptPartition.objects.count() == 5

    process = heartbeat(range(5))
    sweep.look()
    assert not SweptPartition.objects.exists()
    assert {(item.reported_by, item.milliseconds) for item in lag_by_partition()} == {("process", 7)}

    with connection.cursor() as cursor:
        cursor.execute("UPDATE kafka_bridge_processheartbeat SET seen_at = seen_at - interval '1 minute'")
    sweep.look()
    assert len(behind()) == 1

    process.delete()
    heartbeat(range(3))
    sweep.look()
    assert [swept.partition for swept in SweptPartition.objects.order_by("partition")] == [3, 4]


def test_partitions_of_a_consumer_that_does_not_know_its_lag_are_read() -> None:
    heartbeat(range(5), lag_ms=None)
    sweep_of(BOOKINGS).look()
    assert {(item.place.partition, item.reported_by) for item in lag_by_partition()} == {(n, "sweep") for n in range(5)}


def test_the_latest_report_of_a_partition_counts() -> None:
    older = heartbeat(range(1))
    heartbeat(range(1), seen_at=timezone.now() - timedelta(seconds=5))
    (item,) = lag_by_partition()
    assert (item.place, item.reported_at) == (Place("bookings", prefixed(REQUESTS), 0), older.seen_at)


def test_messages_are_read_once_and_none_while_nothing_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Recorder(Consumer):
        def assign(self, partitions: list[TopicPartition]) -> None:
            read.extend(item.offset for item in partitions)
            super().assign(partitions)

    monkeypatch.setattr(client, "Consumer", Recorder)
    sweep = sweep_of(BOOKINGS, OTHERS)
    sweep.look()
    assert read == []
    produce(REQUESTS, [request(1)], key=KEY, seconds_ago=60)
    for _ in range(3):
        sweep.look()
    produce(REQUESTS, [request(2)], key=KEY)
    sweep.look()
    assert read == [0, 0]
    assert [(messages, seconds >= 60) for _, messages, seconds in behind()] == [(2, True), (2, True)]
