"""The other side of the topics: a producer and a reader that are not ours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from django.conf import settings

from common.processes.lifecycle import StopFlag
from devstack.processes import wait_until
from kafka_bridge.client import delete_topics, existing_topics
from kafka_bridge.consuming.consumer import GroupConsumer
from kafka_bridge.outbox.published import anything_unpublished
from kafka_bridge.registry import ConsumerGroup, groups, prefixed
from kafka_bridge.relaying.relay import Relay


def produce(
    topic: str,
    values: Sequence[bytes | None],
    *,
    key: bytes = b"K",
    headers: Mapping[str, bytes] = {},
    seconds_ago: float = 0,
) -> None:
    """Puts values on a topic (named without prefix), all under one key, and waits until they are there."""
    timestamp = int((time.time() - seconds_ago) * 1000)
    producer = Producer({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS, "partitioner": "murmur2_random"})
    for value in values:
        producer.produce(
            prefixed(topic), value=value, key=key, headers=list((headers or {}).items()), timestamp=timestamp
        )
    assert producer.flush(30) == 0


def transactional_producer() -> Producer:
    """A producer of others whose messages count once its transaction is committed; none is begun yet."""
    producer = Producer(
        {
            "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
            "partitioner": "murmur2_random",
            "transactional.id": prefixed("others"),
        }
    )
    producer.init_transactions(30)
    return producer


def read_topic(topic: str, count: int, *, timeout: float = 30) -> list[Message]:
    """The first ``count`` messages of a topic (named without prefix), in order per partition."""
    consumer = _reader(prefixed("reader"))
    consumer.assign([TopicPartition(*partition, OFFSET_BEGINNING) for partition in _partitions(consumer, topic)])
    messages: list[Message] = []
    deadline = time.monotonic() + timeout
    try:
        while len(messages) < count:
            assert time.monotonic() < deadline, f"{topic}: {len(messages)} of {count} messages came"
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                messages.append(message)
    finally:
        consumer.close()
    return messages


def read_to_end(topic: str) -> list[Message]:
    """All messages that are on a topic now (named without prefix), in order per partition."""
    consumer = _reader(prefixed("reader"))
    try:
        ranges = [_watermarks(consumer, TopicPartition(*partition)) for partition in _partitions(consumer, topic)]
    finally:
        consumer.close()
    return read_topic(topic, sum(end - start for start, end in ranges))


def _watermarks(consumer: Consumer, partition: TopicPartition) -> tuple[int, int]:
    """The first offset and the end; a partition of a topic that was just created has no leader for a moment."""
    found: list[tuple[int, int]] = []

    def look() -> bool:
        with suppress(KafkaException):
            found.append(consumer.get_watermark_offsets(partition, timeout=10))
        return bool(found)

    wait_until(look, 30, f"{partition} has no leader")
    return found[0]


def committed_offsets(group_id: str, topic: str) -> dict[int, int]:
    """By partition of a topic (named without prefix): up to where a group has committed, 0 if it never did."""
    consumer = _reader(group_id)
    try:
        partitions = [TopicPartition(*partition) for partition in _partitions(consumer, topic)]
        return {item.partition: max(0, item.offset) for item in consumer.committed(partitions, timeout=30)}
    finally:
        consumer.close()


def _reader(group_id: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
            "group.id": group_id,
            "enable.auto.commit": False,
        }
    )


def _partitions(consumer: Consumer, topic: str) -> list[tuple[str, int]]:
    name = prefixed(topic)
    return [(name, partition) for partition in consumer.list_topics(name, timeout=10).topics[name].partitions]


def header(message: Message, name: str) -> str:
    """A header's text, empty if there is none."""
    pairs = cast(list[tuple[str, bytes]], message.headers() or [])
    return next((value.decode() for header_name, value in pairs if header_name == name), "")


def relay_everything(batch_size: int = 500) -> int:
    """Publishes the whole outbox with a relay in this thread; returns the number of rows."""
    relay, stop, total = Relay(batch_size=batch_size), StopFlag(), 0
    deadline = time.monotonic() + 60
    while (published := relay.relay_batch(stop)) or anything_unpublished():
        total += published
        assert time.monotonic() < deadline, "the relay does not publish everything"
    relay.close()
    return total


def consume_everything(group: ConsumerGroup, batch_size: int | None = None) -> None:
    """Runs a consumer of the group in this thread until every partition was at its end for a second."""
    GroupConsumer(group, batch_size=batch_size).run(StopFlag(), until_idle=True)


def lose_topics(*topics: str) -> None:
    """Delete topics (named without prefix), and wait until the broker knows."""
    names = {prefixed(topic) for topic in topics}
    delete_topics(names)
    wait_until(lambda: not names & existing_topics(), 30, "a deleted topic is still listed")


def set_topic_config(topic: str, values: Mapping[str, str]) -> None:
    """What an operator does with kafka-configs.sh; the topic is named without prefix."""
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    resource = ConfigResource(ResourceType.TOPIC, prefixed(topic), incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    admin.incremental_alter_configs([resource])[resource].result(30)

    def is_in_force() -> bool:
        config = admin.describe_configs([resource])[resource].result(30)
        return all(config[name].value == value for name, value in values.items())

    # The controller answers before the brokers know.
    wait_until(is_in_force, 30, f"{topic} does not get its settings")


def groups_of_the_project() -> list[ConsumerGroup]:
    """The registered groups without those of the stub app, whose routes are in force in tests/bridge only."""
    return [group for group in groups().values() if {*group.event_types} <= settings.KAFKA_ROUTES.keys()]
