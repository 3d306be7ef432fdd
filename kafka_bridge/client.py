"""Clients of Kafka, with the settings that safety requires. Only this module creates clients of librdkafka."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._metadata import TopicMetadata
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from django.conf import settings

from common.http_calls import BUDGET
from common.processes.outages import ServiceUnavailable

from .errors import BadClientOptions
from .registry import prefixed
from .routes import Route
from .topic_checks import (
    DEAD_LETTER_MAX_BYTES,
    EVENT_MAX_BYTES,
    FoundTopic,
    WantedTopic,
    topic_complaints,
    unreadable_complaint,
)

__all__ = [
    "BEGINNING", "AdminClient", "Consumer", "IsolationLevel", "KafkaError", "KafkaException", "Message", "OffsetSpec",
    "Producer", "TopicCollection", "TopicMetadata", "TopicPartition", "check_client_options", "check_kafka",
    "complaints_of", "delete_topics", "ensure_topics", "existing_topics", "group_lag", "make_admin", "make_consumer",
    "make_producer", "topic_configs", "wanted_topics",
]  # fmt: skip

logger = logging.getLogger(__name__)

_ADMIN_TIMEOUT = 10.0
# How long a request waits for a broker before it goes to the partition's next leader. With librdkafka's default (60 s)
# a single frozen broker stops the relay for a minute, though the others have long replaced it.
_REQUEST_TIMEOUT_MS = 10_000
# max.poll.interval.ms: how long a consumer may be busy before its partitions go to another. A batch waits at most 60 s
# for the row lock of a hung session, see the database's options; calls take up to three times ``http_calls.BUDGET``.
# Not longer than needed: a rebalance waits this long for members that died while a broker was down.
_ROW_LOCK_MS = 60_000
_BUSY_MS = 90_000
_BUSY_CALLING_MS = 300_000

_CONNECTION_PROPERTIES = ("security.", "sasl.", "ssl.", "enable.ssl.", "https.", "broker.address.")

# Errors by which the broker refuses a message for good: sending it again cannot succeed.
REFUSED_FOR_GOOD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError._KEY_SERIALIZATION,
        KafkaError._VALUE_SERIALIZATION,
    }
)
# Errors of a request that concern only one of its topics.
_SINGLE_TOPIC_ERRORS = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED})
PARTITION_EOF = KafkaError._PARTITION_EOF
BEGINNING = OFFSET_BEGINNING
# A partition has no leader for a moment when it is new or its broker fails.
_LEADER_CHANGES = frozenset({KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})
_LEADER_CHANGE_PAUSE = 0.1
EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def _base_config() -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
        "error_cb": _log_client_error,
        "logger": _client_logger(),
        "reconnect.backoff.max.ms": 1000,
    }


@cache
def _client_logger() -> logging.Logger:
    """The logger of librdkafka, without its warning at each start that a property is marked as experimental."""
    client_logger = logging.getLogger("librdkafka")
    client_logger.addFilter(lambda record: "enable.gapless.guarantee is experimental" not in record.getMessage())
    return client_logger


def _log_client_error(error: KafkaError) -> None:
    logger.warning("kafka client: %s", error.str())


def make_producer(*, gapless: bool = True) -> Producer:
    """Create a producer that keeps the order of the messages of a key. Create it after any fork.

    ``message.timeout.ms`` 0: no message expires while later ones are sent. ``gapless``: after a message that the broker
    refuses the producer fails, so no later message overtakes it, see ``publisher``.
    """
    return Producer(
        {
            **_base_config(),
            "socket.timeout.ms": _REQUEST_TIMEOUT_MS,
            "linger.ms": 5,
            "batch.num.messages": 10000,
            "queue.buffering.max.messages": 100000,
            "compression.type": "lz4",
            "message.max.bytes": DEAD_LETTER_MAX_BYTES,
            **settings.KAFKA_PRODUCER_CONFIG,
            "acks": "all",
            "enable.idempotence": True,
            "enable.gapless.guarantee": gapless,
            "message.timeout.ms": 0,
            # The Java client's partitioner: Java producers put a key on the same partition.
            "partitioner": "murmur2_random",
            # ``publisher`` learns from its reports which rows are acknowledged.
            "delivery.report.only.error": False,
        }
    )


def make_consumer(
    group_id: str, *, calls_out: Collection[bool] = (False,), properties: Mapping[str, Any] = {}
) -> Consumer:
    """Create a consumer whose offsets move only by explicit commits, and which reports the end of a partition.

    The end is the last stable offset: before an open transaction of another producer, after the markers of finished
    ones. ``calls_out`` says of each effect that handles a batch whether it calls external services, which allows more
    time between polls; ``properties`` are set over the defaults and the settings.
    """
    return Consumer(
        {
            **_base_config(),
            "socket.timeout.ms": _REQUEST_TIMEOUT_MS,
            "session.timeout.ms": 10000,
            "heartbeat.interval.ms": 2000,
            "max.poll.interval.ms": sum(map(_max_poll_interval_ms, calls_out)),
            # The broker answers at once when a message comes. Without one, each answer costs CPU here and there.
            "fetch.wait.max.ms": 250,
            "queued.min.messages": 10000,
            **settings.KAFKA_CONSUMER_CONFIG,
            **properties,
            "group.id": group_id,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )


def _max_poll_interval_ms(calls_out: bool) -> int:
    """Return how long an effect's batch may take: more with more tries, or more time for each, in the settings."""
    tries, pause = settings.CONSUMER_MAX_ATTEMPTS, settings.CONSUMER_BACKOFF_SECONDS
    if not calls_out:
        return max(_BUSY_MS, int(_ROW_LOCK_MS + tries * pause * 1000))
    return max(_BUSY_CALLING_MS, int(tries * (BUDGET + settings.HTTP_TIMEOUT_SECONDS + pause) * 1000))


def make_admin(properties: Mapping[str, Any] = {}) -> AdminClient:
    """Create a client of requests; ``properties`` are set over the defaults. One that lives long must be polled."""
    # Credentials and TLS are set in the producer's properties.
    connection = {
        name: value for name, value in settings.KAFKA_PRODUCER_CONFIG.items() if name.startswith(_CONNECTION_PROPERTIES)
    }
    return AdminClient({**_base_config(), **connection, **properties})


def check_client_options() -> None:
    """Raise BadClientOptions if librdkafka refuses a configured property or its value. Opens no connection."""
    for setting, make in _CLIENTS.items():
        try:
            make()
        except (KafkaException, ValueError, TypeError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise BadClientOptions(f"{setting}: {reason}; see librdkafka's CONFIGURATION.md for its names") from error


_CLIENTS: dict[str, Callable[[], object]] = {
    "KAFKA_PRODUCER_CONFIG": make_producer,
    "KAFKA_CONSUMER_CONFIG": lambda: make_consumer("check").close(),
}


def check_kafka() -> None:
    """Raise ServiceUnavailable unless a broker answers."""
    try:
        make_admin().list_topics(timeout=2)
    except KafkaException as error:
        raise ServiceUnavailable(
            f"Kafka at {settings.KAFKA_BOOTSTRAP_SERVERS} does not answer: {error.args[0].str()}"
        ) from error


def ensure_topics(routes: Mapping[str, Route]) -> tuple[list[str], list[str]]:
    """Create the missing topics of ``routes``; returns (created, complaints), sorted. Existing topics are not changed.

    ``created`` are names with the prefix. A complaint is a line about a topic with fewer partitions or replicas than
    its route says (more are fine), or with a setting that breaks a guarantee, see ``topic_checks``. Raises
    ServiceUnavailable if Kafka does not answer.
    """
    admin = make_admin()
    wanted = wanted_topics(routes)
    try:
        existing = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        missing = [_new_topic(topic) for name, topic in wanted.items() if name not in existing]
        created = []
        futures = admin.create_topics(missing, operation_timeout=_ADMIN_TIMEOUT) if missing else {}
        for name, future in futures.items():
            try:
                future.result()
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        if missing:
            existing = _list_all(admin, created)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka refused to create topics: {error.args[0].str()}") from error
    # A broker that does not know a new topic yet returns an error: its settings are those it was created with.
    configs = {
        name: config
        for name, config in topic_configs(wanted).items()
        if name not in created or not isinstance(config, KafkaError)
    }
    complaints = [
        complaint
        for name, config in configs.items()
        for complaint in complaints_of(wanted[name], existing.get(name), config)
    ]
    return sorted(created), sorted(complaints)


def _list_all(admin: AdminClient, created: Collection[str]) -> dict[str, TopicMetadata]:
    """List all topics that this user may see; waits until the broker knows the ``created`` ones."""
    deadline = time.monotonic() + _ADMIN_TIMEOUT
    while True:
        existing: dict[str, TopicMetadata] = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        if existing.keys() >= set(created) or time.monotonic() > deadline:
            return existing
        time.sleep(0.1)


def complaints_of(
    wanted: WantedTopic, existing: TopicMetadata | None, config: dict[str, str] | KafkaError
) -> Iterable[str]:
    """Return a line per setting of a topic that breaks a guarantee, see ``topic_checks``."""
    if isinstance(config, KafkaError):
        return [unreadable_complaint(wanted.name, config.str())]
    if existing is None:
        return [unreadable_complaint(wanted.name, "the broker does not list it")]
    partitions = existing.partitions.values()
    replicas = min((len(partition.replicas) for partition in partitions), default=0)
    return topic_complaints(wanted, FoundTopic(len(partitions), replicas, config))


def existing_topics() -> set[str]:
    """Return the names of all topics, with the prefix. Raises ServiceUnavailable if Kafka does not answer."""
    try:
        return set(make_admin().list_topics(timeout=_ADMIN_TIMEOUT).topics)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not list its topics: {error.args[0].str()}") from error


def topic_configs(names: Collection[str], *, timeout: float = _ADMIN_TIMEOUT) -> dict[str, dict[str, str] | KafkaError]:
    """Return the effective settings of topics, brokers' defaults included, by name (with the prefix).

    The value is the broker's error where it returns no settings. Raises ServiceUnavailable if Kafka does not answer.
    """
    admin = make_admin()
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str] | KafkaError] = {}
    try:
        futures = admin.describe_configs(resources, request_timeout=timeout) if resources else {}
        for resource, future in futures.items():
            try:
                found[resource.name] = {name: entry.value or "" for name, entry in future.result().items()}
            except KafkaException as error:
                if error.args[0].code() not in _SINGLE_TOPIC_ERRORS:
                    raise
                found[resource.name] = error.args[0]
    except KafkaException as error:
        raise ServiceUnavailable(
            f"Kafka does not describe the settings of its topics: {error.args[0].str()}"
        ) from error
    return found


def delete_topics(names: Iterable[str]) -> None:
    """Delete topics (names with the prefix) and their messages. Raises ServiceUnavailable if Kafka refuses."""
    # Keep the client until the futures are done: without it they never complete.
    admin = make_admin()
    topics = list(names)
    try:
        futures = admin.delete_topics(topics, operation_timeout=_ADMIN_TIMEOUT) if topics else {}
        for future in futures.values():
            future.result()
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka refused to delete topics: {error.args[0].str()}") from error


def wanted_topics(routes: Mapping[str, Route]) -> dict[str, WantedTopic]:
    """Return the topics of ``routes`` and their dead-letter topics by name, with the prefix."""
    topics: dict[str, WantedTopic] = {}
    for route in routes.values():
        replicas = route.replicas or settings.KAFKA_REPLICATION_FACTOR
        events = WantedTopic(prefixed(route.topic), route.partitions, replicas, route.retention_ms, EVENT_MAX_BYTES)
        dead_letters = WantedTopic(
            prefixed(route.dead_letter_topic),
            route.dead_letter_partitions,
            replicas,
            -1,
            DEAD_LETTER_MAX_BYTES,
            is_dead_letter_topic=True,
        )
        topics |= {events.name: events, dead_letters.name: dead_letters}
    return topics


def _new_topic(wanted: WantedTopic) -> NewTopic:
    return NewTopic(
        wanted.name, num_partitions=wanted.partitions, replication_factor=wanted.replicas, config=wanted.config()
    )


def group_lag(group_id: str, topics: list[str]) -> int:
    """Return how many messages of ``topics`` (with prefix) the group has not committed.

    Raises ServiceUnavailable if that is unknown: Kafka does not answer, or the remaining messages cannot be read
    because an open transaction of another producer holds them back.
    """
    consumer = make_consumer(group_id)
    try:
        metadata = consumer.list_topics(timeout=_ADMIN_TIMEOUT).topics
        partitions = [
            TopicPartition(topic, partition)
            for topic in topics
            if topic in metadata
            for partition in metadata[topic].partitions
        ]
        committed = consumer.committed(partitions, timeout=_ADMIN_TIMEOUT)
        # The order matters: first the commits, then the ends, then the last stable offsets. If all three are equal,
        # every message that was on the topic at the call is handled.
        admin = make_admin()
        first = _offsets(admin, partitions, EARLIEST)
        ends = _offsets(admin, partitions, LATEST)
        stable = _offsets(admin, partitions, LATEST, IsolationLevel.READ_COMMITTED)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not return the lag of {group_id}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    # An offset out of range (none committed, or the topic was recreated) means: from the beginning.
    lag = sum(
        last - (item.offset if low <= item.offset <= last else low)
        for item, low, last in zip(committed, first, stable, strict=True)
    )
    held_back = [
        f"topic {item.topic} partition {item.partition} from offset {last}"
        for item, end, last in zip(partitions, ends, stable, strict=True)
        if last < end
    ]
    if held_back and lag == 0:
        raise ServiceUnavailable(
            f"an open transaction of another producer on {', '.join(held_back)} holds back the messages behind it from"
            f" {group_id}: have that producer end it, or wait for its transaction.timeout.ms"
        )
    return lag


def _offsets(
    admin: AdminClient,
    partitions: Sequence[TopicPartition],
    spec: OffsetSpec,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> list[int]:
    """Return an offset per partition. The latest with READ_COMMITTED is the start of its first open transaction."""
    if not partitions:
        return []
    wanted = {TopicPartition(item.topic, item.partition): spec for item in partitions}
    deadline = time.monotonic() + _ADMIN_TIMEOUT
    while True:
        futures = admin.list_offsets(wanted, isolation_level=isolation, request_timeout=_ADMIN_TIMEOUT)
        try:
            offsets = {(item.topic, item.partition): future.result().offset for item, future in futures.items()}
            return [offsets[item.topic, item.partition] for item in partitions]
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_CHANGES or time.monotonic() >= deadline:
                raise
        time.sleep(_LEADER_CHANGE_PAUSE)
