"""Limits of the JSON settings for Kafka: librdkafka and brokers accept values that the service cannot work with.

The fixed properties of librdkafka protect the guarantees: no setting may change them.
"""

from __future__ import annotations

import json

from couponsite.environment.values import Limits
from kafka_bridge.routes import (
    LEAST_RETENTION_MS,
    LONGEST_NAME,
    MOST_CONSUMERS,
    MOST_FORMER_TOPICS,
    MOST_PARTITIONS,
    MOST_REPLICAS,
    MOST_RETENTION_MS,
)

_ACCEPTED_FIELDS = (
    '"partitions": 1, "replicas": 1, "retentionMs": -1',
    f'"partitions": {MOST_PARTITIONS}, "replicas": {MOST_REPLICAS}, "retentionMs": {MOST_RETENTION_MS}',
    f'"retentionMs": {LEAST_RETENTION_MS}',
    f'"topic": "{"t" * LONGEST_NAME}", "deadLetterTopic": "{"d" * LONGEST_NAME}"',
    '"topic": "_t"', '"deadLetterPartitions": 1', f'"deadLetterPartitions": {MOST_PARTITIONS}',
    '"key": "orderId"', '"key": "order:{orderId}"', f'"key": "{"k" * 100}{{orderId}}{"k" * 100}"',
)  # fmt: skip
_REFUSED_FIELDS = (
    '"partitions": 0', f'"partitions": {MOST_PARTITIONS + 1}', '"partitions": "3"', '"partitions": true',
    '"replicas": 0', f'"replicas": {MOST_REPLICAS + 1}', '"replicas": 1.0',
    '"retentionMs": 0', '"retentionMs": -2', f'"retentionMs": {LEAST_RETENTION_MS - 1}',
    f'"retentionMs": {MOST_RETENTION_MS + 1}', f'"retentionMs": {2**64}', f'"retentionMs": {10**40}',
    f'"topic": "{"t" * (LONGEST_NAME + 1)}"', '"topic": "."', '"topic": ".."', '"topic": " "', '"topic": ""',
    '"topic": "a/b"', '"topic": {}', f'"deadLetterTopic": "{"d" * (LONGEST_NAME + 1)}"',
    '"topic": "__transaction_state"', '"deadLetterTopic": "__consumer_offsets"',
    # Topics of events cannot hold dead letters.
    '"deadLetterTopic": "order-cancelled"', '"deadLetterTopic": "order-completed"',
    '"topic": "order-cancelled.DLT", "deadLetterTopic": "d"',
    '"deadLetterPartitions": 0', f'"deadLetterPartitions": {MOST_PARTITIONS + 1}',
    '"key": "couponType"', '"key": "c:{couponType}"', '"key": "{orderId}{orderId}"', '"key": "{orderId"', '"key": "{}"',
    f'"key": "{"k" * 101}{{orderId}}"', '"key": "\u00e9{orderId}"', '"key": []', '"unknown": 1',
    '"topic": "a", "topic": "b"',
)  # fmt: skip
ROUTES = Limits(
    tuple(f'{{"order.completed.v1": {{{fields}}}}}' for fields in _ACCEPTED_FIELDS),
    (
        *(f'{{"order.completed.v1": {{{fields}}}}}' for fields in _REFUSED_FIELDS),
        '{"no.such.event": {}}',
        '{"order.completed.v1": []}',
        '{"order.completed.v1": null}',
    ),
)
_REFUSED_IDS = ("", " ", "a b", "a/b", ".", "\\u0007", "\u00e9", "g" * (LONGEST_NAME + 1))
GROUPS = Limits(
    (
        '{"issue": "a"}',
        f'{{"issue": "{"g" * LONGEST_NAME}"}}',
        '{"issue": "issue"}',
        '{"notification": "a", "data-platform": "a", "ranking": "a", "monitoring": "a"}',
    ),
    (
        *(f'{{"issue": "{group_id}"}}' for group_id in _REFUSED_IDS),
        '{"issue": 1}',
        '{"issue": {}}',
        '{"no-such-group": "a"}',
        '{"issue": "a", "results": "a"}',
        '{"results": "a", "notification": "a"}',
        '{"monitoring": "dead-letter-monitor-group"}',
        '{"issue": "results"}',
        '{"notification": "ranking"}',
    ),
)
FORMER_TOPICS = Limits(
    (
        '{"order.completed.v1": []}',
        f'{{"order.completed.v1": ["{"t" * LONGEST_NAME}"]}}',
        f'{{"order.completed.v1": {json.dumps([f"t{number}" for number in range(MOST_FORMER_TOPICS)])}}}',
    ),
    (
        *(
            f'{{"order.completed.v1": ["{topic}"]}}'
            for topic in ("", ".", "a b", "a/b", "__t", "t" * (LONGEST_NAME + 1))
        ),
        # Its present topic, and a dead-letter topic of the present routes.
        '{"order.completed.v1": ["order-completed"]}',
        '{"order.completed.v1": ["order-completed.DLT"]}',
        f'{{"order.completed.v1": {json.dumps([f"t{number}" for number in range(MOST_FORMER_TOPICS + 1)])}}}',
        '{"order.completed.v1": "a"}',
        '{"order.completed.v1": [1]}',
        '{"order.completed.v1": null}',
        '{"no.such.event": []}',
    ),
)
CONCURRENCY = Limits(
    ('{"issue": 1}', f'{{"issue": {MOST_CONSUMERS}}}'),
    (
        *(f'{{"issue": {number}}}' for number in ("0", f"{MOST_CONSUMERS + 1}", '"3"', "true", "1.5", "null")),
        '{"no-such-group": 1}',
    ),
)

# librdkafka property -> (minimum, maximum).
_CLIENT = {
    "socket.timeout.ms": (1_000, 60_000),
    "socket.connection.setup.timeout.ms": (1_000, 60_000),
    "reconnect.backoff.ms": (0, 1_000),
    "reconnect.backoff.max.ms": (1_000, 10_000),
    "retry.backoff.ms": (1, 1_000),
    "retry.backoff.max.ms": (1_000, 10_000),
    "topic.metadata.refresh.interval.ms": (1_000, 900_000),
}
PRODUCER = {
    **_CLIENT,
    # The minimum fits the largest dead letter.
    "message.max.bytes": (2 * 1024 * 1024, 16 * 1024 * 1024),
    # The minimum fits a batch of the relay; the maximum protects the memory of the process.
    "queue.buffering.max.messages": (1_000, 1_000_000),
    "queue.buffering.max.kbytes": (16_384, 1_048_576),
    # Delays every request. Both names mean the same property.
    "linger.ms": (0, 1_000),
    "queue.buffering.max.ms": (0, 1_000),
    "request.timeout.ms": (1_000, 60_000),
    "batch.num.messages": (1, 1_000_000),
    "batch.size": (1_024, 16 * 1024 * 1024),
}
CONSUMER = {
    **_CLIENT,
    # Brokers refuse a shorter session, and the group never receives partitions.
    "session.timeout.ms": (6_000, 300_000),
    # The maximum is half of the shortest session.
    "heartbeat.interval.ms": (100, 3_000),
    # The minimum covers the groups that call external services: see kafka_bridge.client.
    "max.poll.interval.ms": (300_000, 3_600_000),
    "fetch.wait.max.ms": (0, 5_000),
    "fetch.min.bytes": (1, 52_428_800),
    "queued.min.messages": (1, 1_000_000),
    "queued.max.messages.kbytes": (1_024, 1_048_576),
}

# Names of the Java client that librdkafka has under another name.
_RENAMED = {
    "send.buffer.bytes": "socket.send.buffer.bytes",
    "receive.buffer.bytes": "socket.receive.buffer.bytes",
}
PRODUCER_RENAMED = {**_RENAMED, "max.request.size": "message.max.bytes"}
CONSUMER_RENAMED = {**_RENAMED, "fetch.max.wait.ms": "fetch.wait.max.ms"}
# Names of the Java client and of Spring that mean something else here, or nothing: what to do instead.
_NO_SERIALIZERS = "messages are bytes here, remove it"
PRODUCER_ELSEWHERE = {
    "key.serializer": _NO_SERIALIZERS,
    "value.serializer": _NO_SERIALIZERS,
    "min.insync.replicas": "topics have it, create_topics sets it: remove it and set KAFKA_REPLICATION_FACTOR",
    "buffer.memory": "use queue.buffering.max.kbytes, in KiB",
    "max.block.ms": "the outbox waits for Kafka without limit, remove it",
}
CONSUMER_ELSEWHERE = {
    "key.deserializer": _NO_SERIALIZERS,
    "value.deserializer": _NO_SERIALIZERS,
    "spring.json.trusted.packages": "messages name no classes here, remove it",
    "max.poll.records": "use CONSUMER_BATCH_SIZE",
    "auto.commit.interval.ms": "offsets are committed after the transaction of their effects, remove it",
    "request.timeout.ms": "use socket.timeout.ms",
}

PRODUCER_FIXED = frozenset(
    {
        "acks", "request.required.acks", "enable.idempotence", "enable.gapless.guarantee", "message.timeout.ms",
        "delivery.timeout.ms", "retries", "message.send.max.retries", "max.in.flight",
        "max.in.flight.requests.per.connection", "partitioner", "queuing.strategy", "transactional.id",
        "bootstrap.servers", "metadata.broker.list", "delivery.report.only.error",
    }
)  # fmt: skip
CONSUMER_FIXED = frozenset(
    {
        "enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store", "auto.offset.reset",
        "enable.partition.eof", "isolation.level", "partition.assignment.strategy", "group.id",
        "group.instance.id", "group.protocol", "bootstrap.servers", "metadata.broker.list",
        "allow.auto.create.topics", "topic.blacklist",
    }
)  # fmt: skip
