"""Producers with transactions on our topics: their markers are no lag, and an open transaction is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from django.db import OperationalError
from prometheus_client import REGISTRY
from pytest_django import Settings

from common.processes.lifecycle import StopFlag
from common.processes.outages import ServiceUnavailable
from devstack import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.registry import ConsumerGroup, prefixed
from tests.stub_app.consumer_groups import BOOKINGS, BookingRequest
from tests.stub_app.events import request, winners
from tests.stub_app.routes import REQUESTS as TOPIC
from tests.support.kafka import (
    committed_offsets,
    consume_everything,
    produce,
    transactional_producer,
)
from tests.support.threads import in_another_session

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("topics")]

# Keys of two partitions.
KEY, OTHER_KEY = b"A", b"B"


@pytest.fixture(autouse=True)
def _short_pauses(settings: Settings) -> None:
    settings.CONSUMER_BACKOFF_SECONDS = 0.05


@pytest.fixture
def others(topics: str) -> Producer:
    """A transactional producer of others that has begun a transaction."""
    producer = transactional_producer()
    producer.begin_transaction()
    return producer


def write(producer: Producer, value: bytes, key: bytes = KEY) -> None:
    """Write a message that stays within the producer's transaction."""
    producer.produce(prefixed(TOPIC), value, key)
    assert producer.flush(30) == 0


def lag() -> int:
    return group_lag(BOOKINGS.group_id, BOOKINGS.topics)


@contextmanager
def running(group: ConsumerGroup) -> Iterator[None]:
    """A consumer of the group in the background."""
    stop = StopFlag()
    consumer = in_another_session(lambda: GroupConsumer(group).run(stop))
    try:
        yield
    finally:
        stop.request()
        consumer.result(30)


# Markers


def test_the_marker_of_a_committed_transaction_is_no_lag(others: Producer) -> None:
    write(others, request(1))
    others.commit_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([1], 0)


def test_an_aborted_transaction_is_no_lag_and_has_no_effect(others: Producer) -> None:
    write(others, request(1))
    others.abort_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([], 0)


def test_markers_behind_a_consumer_that_has_nothing_to_do_are_no_lag(others: Producer) -> None:
    with running(BOOKINGS):
        for user_id, end in enumerate(("commit_transaction", "abort_transaction", "commit_transaction"), 1):
            write(others, request(user_id))
            getattr(others, end)(30)
            wait_until(lambda: lag() == 0, 30, "the marker counts as lag")
            others.begin_transaction()
        offsets = committed_offsets(BOOKINGS.group_id, TOPIC)
        (partition,) = (number for number, offset in offsets.items() if offset == 6)
        labels = {"group": "bookings", "topic": prefixed(TOPIC), "partition": str(partition)}
        wait_until(
            lambda: REGISTRY.get_sample_value("consumer_lag_messages", labels) == 0, 30, "the gauge counts the marker"
        )
    assert winners() == [1, 3]


# What is in hand


def commit_an_end_while_another_partition_retries(others: Producer) -> list[int]:
    """Returns the offsets committed then; the consumer that had two messages in hand is gone."""
    produce(TOPIC, [request(1), request(2)], key=KEY)
    tries: list[int] = []

    def fail(requests: Sequence[BookingRequest]) -> None:
        tries.append(len(requests))
        raise OperationalError("the server is away")

    with running(replace(BOOKINGS, handle=fail)):
        wait_until(lambda: len(tries) >= 3, 30, "the batch is not tried again")
        for user_id in (3, 4):
            write(others, request(user_id), OTHER_KEY)
        others.abort_transaction(30)
        # Two messages and a marker.
        wait_until(lambda: 3 in committed_offsets(BOOKINGS.group_id, TOPIC).values(), 30, "the end is not committed")
    return sorted(committed_offsets(BOOKINGS.group_id, TOPIC).values())


def test_no_offset_moves_past_messages_in_hand(others: Producer) -> None:
    assert commit_an_end_while_another_partition_retries(others) == [0, 0, 0, 0, 3]
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([1, 2], 0)


def test_if_what_is_in_hand_did_not_count_messages_would_be_lost(
    others: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(GroupConsumer, "_has_buffered", lambda *args: False)
        assert commit_an_end_while_another_partition_retries(others) == [0, 0, 0, 2, 3]
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([], 0)


# An open transaction


def test_an_open_transaction_is_named_and_holds_back_what_is_behind_it(others: Producer) -> None:
    write(others, request(1))
    produce(TOPIC, [request(2)], key=KEY)
    consume_everything(BOOKINGS)
    name = f"an open transaction of another producer on topic {prefixed(TOPIC)} partition "
    with pytest.raises(ServiceUnavailable, match=name):
        lag()
    assert winners() == []

    others.abort_transaction(30)
    consume_everything(BOOKINGS)
    assert (winners(), lag()) == ([2], 0)


def test_what_can_be_read_before_an_open_transaction_is_lag(others: Producer) -> None:
    produce(TOPIC, [request(1)], key=OTHER_KEY)
    write(others, request(2))
    assert lag() == 1
    others.abort_transaction(30)
