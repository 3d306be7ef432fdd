"""Observes Kafka from outside: messages of topics, members of groups and their committed offsets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from django.conf import settings

from devstack import wait_until
from kafka_bridge.client import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
    make_admin,
    make_consumer,
    make_producer,
    topic_configs,
)
from kafka_bridge.consuming.received import received
from kafka_bridge.registry import ReceivedMessage, groups, prefixed, unprefixed

OBSERVE_SECONDS = 90.0
_POLL_SECONDS = 0.2
# The client library's name for the first offset of a partition.
_BEGINNING = -2
_REQUEST_SECONDS = 10.0
# The settings of a document may let the broker wait for 50,000 bytes, which an observer must not.
_AT_ONCE = {"fetch.min.bytes": 1, "fetch.wait.max.ms": 100}


def body_of(message: ReceivedMessage) -> dict[str, Any]:
    """Return the JSON object in a message; empty if there is none."""
    try:
        body = json.loads(message.value or b"")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def position_of(message: ReceivedMessage) -> str:
    """Return topic, partition, offset and key: ``coupon-issue[2]@7 key 12``."""
    return f"{message} key {(message.key or b'').decode(errors='replace')}"


def is_of_request(request_id: UUID) -> Callable[[ReceivedMessage], bool]:
    """Return a condition: whether a message is about this request."""
    return lambda message: body_of(message).get("requestId") == str(request_id)


def is_event(event_id: UUID) -> Callable[[ReceivedMessage], bool]:
    """Return a condition: whether a message has this event id."""
    return lambda message: message.event_id == event_id


class TopicObserver:
    """Reads topics from their beginning, outside of all consumer groups, and keeps their messages."""

    def __init__(self, topics: Collection[str]) -> None:
        """``topics`` are names without the prefix; they exist."""
        self._consumer: Consumer = make_consumer(prefixed("demo-observer"), properties=_AT_ONCE)
        known = self._consumer.list_topics(timeout=_REQUEST_SECONDS).topics
        self._consumer.assign(
            [
                TopicPartition(name, partition, _BEGINNING)
                for name in map(prefixed, topics)
                for partition in known[name].partitions
            ]
        )
        self.messages: list[ReceivedMessage] = []

    def close(self) -> None:
        """Close the connection to Kafka."""
        self._consumer.close()

    def read(self) -> None:
        """Read what has come since."""
        for message in self._consumer.consume(1000, timeout=_POLL_SECONDS):
            topic, partition = message.topic(), message.partition()
            if message.error() is None and topic is not None and partition is not None:
                self.messages.append(received(message, unprefixed(topic), partition))

    def found(self, topic: str, wanted: Callable[[ReceivedMessage], bool]) -> list[ReceivedMessage]:
        """Return the messages of ``topic`` read so far for which ``wanted`` is true."""
        return [message for message in self.messages if message.topic == topic and wanted(message)]

    def message(self, topic: str, wanted: Callable[[ReceivedMessage], bool], what: str) -> ReceivedMessage:
        """Wait for a message of ``topic`` for which ``wanted`` is true, and return the first.

        Raises TimeoutError after 90 s, which names ``what``.
        """
        deadline = time.monotonic() + OBSERVE_SECONDS
        while not (found := self.found(topic, wanted)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come to {topic} within {OBSERVE_SECONDS:.0f} s")
            self.read()
        return found[0]


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A consumer of a group: its id at the broker, and the partitions that it has, with the topic's prefix."""

    id: str
    partitions: frozenset[tuple[str, int]]

    def __str__(self) -> str:
        # rdkafka- and a UUID: the first characters tell members apart.
        return self.id.removeprefix("rdkafka-")[:8]


def group_members(group: str) -> list[GroupMember]:
    """Return the consumers of the group ``group`` (a name of the settings) that the broker knows."""
    group_id = groups()[group].group_id
    future = _admin().describe_consumer_groups([group_id], request_timeout=_REQUEST_SECONDS)[group_id]
    try:
        described = future.result()
    except KafkaException:
        # The coordinator moves, or has no such group yet.
        return []
    return [
        GroupMember(
            member.member_id,
            frozenset((item.topic, item.partition) for item in member.assignment.topic_partitions),
        )
        for member in described.members
    ]


def wait_for_consumers(group: str, consumers: int) -> list[GroupMember]:
    """Wait until the group has so many consumers and they share all partitions of its topics evenly; return them.

    Raises TimeoutError after 90 s.
    """
    found: list[GroupMember] = []
    wanted = {(topic, partition) for topic in groups()[group].topics for partition in _partitions(topic)}

    def share_all() -> bool:
        found[:] = group_members(group)
        # Of a group that is not balanced yet, partitions will change hands while the story observes them. What is
        # balanced is the whole: groups with equal ids share a subscription, which may have more topics.
        sizes = [len(member.partitions) for member in found]
        even = len(found) == consumers and max(sizes) - min(sizes) <= 1
        shares = [member.partitions & wanted for member in found]
        return even and sum(map(len, shares)) == len(wanted) and frozenset().union(*shares) == wanted

    wait_until(share_all, OBSERVE_SECONDS, f"group {group} does not get {consumers} consumers", _POLL_SECONDS)
    return found


def wait_for_owner(group: str, message: ReceivedMessage) -> GroupMember:
    """Wait until a consumer of the group has the partition of a message; return it. Raises TimeoutError after 90 s."""
    partition = (prefixed(message.topic), message.partition)
    found: list[GroupMember] = []

    def has_owner() -> bool:
        found[:] = [member for member in group_members(group) if partition in member.partitions]
        return bool(found)

    wait_until(
        has_owner, OBSERVE_SECONDS, f"no consumer of group {group} has the partition of {message}", _POLL_SECONDS
    )
    return found[0]


def committed_offset(group: str, topic: str, partition: int) -> int:
    """Return up to where a group has committed a partition (topic without the prefix), 0 if it never did."""
    wanted = TopicPartition(prefixed(topic), partition)
    try:
        (found,) = _offsets_reader(groups()[group].group_id).committed([wanted], timeout=_REQUEST_SECONDS)
    except KafkaException:
        return 0
    return max(0, int(found.offset))


def wait_for_commit(group: str, message: ReceivedMessage) -> int:
    """Wait until a group has committed past a message; return the offset. Raises TimeoutError after 90 s."""
    offset = 0

    def is_past() -> bool:
        nonlocal offset
        offset = committed_offset(group, message.topic, message.partition)
        return offset > message.offset

    wait_until(is_past, OBSERVE_SECONDS, f"group {group} does not commit past {message}", _POLL_SECONDS)
    return offset


def publish(topic: str, value: bytes, *, key: bytes, headers: Mapping[str, bytes | None] = {}) -> None:
    """Publish a message as another producer would, and wait until the brokers have it. Raises TimeoutError."""
    producer = make_producer(gapless=False)
    producer.produce(prefixed(topic), value=value, key=key, headers=list(headers.items()))
    if producer.flush(OBSERVE_SECONDS):
        raise TimeoutError(f"Kafka does not acknowledge a message to {topic}")


def setting_of(topic: str, name: str) -> str:
    """Return a setting of a topic (without the prefix) as the brokers have it. Raises ServiceUnavailable."""
    config = topic_configs([prefixed(topic)])[prefixed(topic)]
    return "" if isinstance(config, KafkaError) else config[name]


def replicas_of(topic: str, partition: int) -> tuple[int, list[int], list[int]]:
    """Return leader, replicas and in-sync replicas of a partition (topic without the prefix), by broker number."""
    found = _admin().list_topics(prefixed(topic), timeout=_REQUEST_SECONDS).topics[prefixed(topic)]
    metadata = found.partitions[partition]
    return metadata.leader, list(metadata.replicas), list(metadata.isrs)


def all_topics() -> set[str]:
    """Return the topics of the routes and their dead-letter topics, without the prefix."""
    return {name for route in settings.KAFKA_ROUTES.values() for name in (route.topic, route.dead_letter_topic)}


def _partitions(topic: str) -> list[int]:
    return list(_admin().list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic].partitions)


@cache
def _admin() -> Any:
    return make_admin()


@cache
def _offsets_reader(group_id: str) -> Consumer:
    return make_consumer(group_id)
