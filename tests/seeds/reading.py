"""A consumer as the documents draw it: the key is text, the body is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from django.conf import settings

from devstack import wait_until
from kafka_bridge.registry import prefixed, unprefixed

_SECONDS = 60.0


class Record(NamedTuple):
    """A message; ``topic`` is without prefix, ``body`` None where the bytes are no JSON."""

    topic: str
    partition: int
    offset: int
    key: str
    body: Any
    headers: dict[str, str]


class TopicReader:
    """Reads topics from their beginning, without a group."""

    def __init__(self, topics: Collection[str]) -> None:
        """``topics`` are without prefix and exist."""
        self.records: list[Record] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
                "group.id": prefixed("reader"),
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
            }
        )
        listed = self._consumer.list_topics(timeout=30).topics
        self._consumer.assign(
            [
                TopicPartition(prefixed(name), partition, OFFSET_BEGINNING)
                for name in topics
                for partition in listed[prefixed(name)].partitions
            ]
        )

    def replicas(self, topic: str) -> list[int]:
        """The number of replicas of each partition that a topic has."""
        listed = self._consumer.list_topics(prefixed(topic), timeout=30).topics[prefixed(topic)]
        return [len(partition.replicas) for partition in listed.partitions.values()]

    def find(self, topic: str, wanted: Callable[[Record], bool], what: str) -> Record:
        """Wait for the first message on a topic that is wanted; ``what`` names it."""
        found: list[Record] = []

        def look() -> bool:
            self.read()
            found.extend(record for record in self.records if record.topic == topic and wanted(record))
            return bool(found)

        wait_until(look, _SECONDS, f"{what} is not on {topic}", 0)
        return found[0]

    def on(self, topic: str) -> list[Record]:
        """The messages of a topic that were read until now, by partition and offset."""
        return sorted(record for record in self.records if record.topic == topic)

    def read(self) -> None:
        """Read what has come, for a tenth of a second."""
        for message in self._consumer.consume(500, 0.1):
            if message.error() is not None:
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None
            assert partition is not None
            assert offset is not None
            headers = cast(list[tuple[str, bytes]], message.headers() or [])
            self.records.append(
                Record(
                    unprefixed(topic),
                    partition,
                    offset,
                    (message.key() or b"").decode(errors="replace"),
                    _json(message.value() or b""),
                    {name: value.decode() for name, value in headers},
                )
            )

    def close(self) -> None:
        self._consumer.close()


def _json(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None


def shares_of_members(group_id: str) -> list[int]:
    """How many partitions each member of a group has, sorted; ``group_id`` is without prefix."""
    admin = AdminClient({"bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS})
    described = admin.describe_consumer_groups([prefixed(group_id)], request_timeout=10)[prefixed(group_id)].result()
    return sorted(len(member.assignment.topic_partitions) for member in described.members)
