"""What several test files play through: relays beside each other, late rows, and other producers' transactions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import confluent_kafka
from confluent_kafka import Producer
from django.db import OperationalError, connection

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import group_lag
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.models import RelayLease, RelayMember
from kafka_bridge.outbox.writing import Message, publish
from kafka_bridge.registry import ConsumerGroup, prefixed
from kafka_bridge.relaying.relay import Relay
from tests.stub_app.consumer_groups import BOOKINGS, BookingRequest
from tests.stub_app.events import publish_numbers, request
from tests.stub_app.routes import NUMBER_DRAWN, NUMBERS, REQUESTS
from tests.support.kafka import committed_offsets, produce, read_topic
from tests.support.threads import OpenTransaction, in_another_session

# Keys of two partitions.
KEY, OTHER_KEY = b"A", b"B"


def numbers(messages: Sequence[confluent_kafka.Message]) -> list[int]:
    return [json.loads(message.value() or b"")["number"] for message in messages]


def first_copies(messages: Sequence[confluent_kafka.Message]) -> list[int]:
    return list(dict.fromkeys(numbers(messages)))


def sent_around_a_hanging_relay() -> list[int]:
    """The order of first copies when a relay locks the first five rows and hangs while another publishes."""

    def hang() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT id FROM kafka_bridge_outboxmessage ORDER BY id LIMIT 5 FOR UPDATE")

    def publish_once() -> int:
        other = Relay()
        try:
            return other.relay_batch(StopFlag())
        finally:
            other.close()

    with OpenTransaction(hang) as hanging:
        sent = in_another_session(publish_once).result(30)
        hanging.rollback()
    sent += relay_what_is_there()
    return first_copies(read_topic(NUMBERS, sent))


def relay_what_is_there(batch_size: int = 500) -> int:
    """Publish until a relay without leases, whose position is not saved, finds nothing; returns the number of rows."""
    some_relay, total = Relay(batch_size=batch_size), 0
    while published := some_relay.relay_batch(StopFlag()):
        total += published
    some_relay.close()
    return total


def publish_late_and_early(relay_between: Relay) -> None:
    """A row whose transaction is still open when a row with a higher id is committed and relayed."""
    with OpenTransaction(lambda: publish([Message(NUMBER_DRAWN, {"key": 1, "number": 0})])) as late:
        publish_numbers(range(1, 2))
        settle(relay_between)
        late.commit()
    settle(relay_between)


def take_over() -> None:
    """End every lease, as if its relay was killed: nothing is saved any more."""
    RelayMember.objects.all().delete()
    RelayLease.objects.update(owner=None, expires_at=None)


def settle(some_relay: Relay) -> None:
    """A few passes, each of which may move the settled mark."""
    for _ in range(4):
        some_relay.relay_batch(StopFlag())


def write(producer: Producer, value: bytes, key: bytes = KEY) -> None:
    """Write a message that stays within the producer's transaction."""
    producer.produce(prefixed(REQUESTS), value, key)
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


def commit_an_end_while_another_partition_retries(others: Producer) -> list[int]:
    """Returns the offsets committed then; the consumer that had two messages in hand is gone."""
    produce(REQUESTS, [request(1), request(2)], key=KEY)
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
        wait_until(lambda: 3 in committed_offsets(BOOKINGS.group_id, REQUESTS).values(), 30, "the end is not committed")
    return sorted(committed_offsets(BOOKINGS.group_id, REQUESTS).values())
