"""The only place that talks to librdkafka: clients with the settings that safety fixes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
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
    "Consumer",
    "KafkaError",
    "KafkaException",
    "Message",
    "Producer",
    "TopicMetadata",
    "TopicPartition",
    "check_client_options",
    "check_kafka",
    "delete_topics",
    "ensure_topics",
    "existing_topics",
    "group_lag",
    "make_consumer",
    "make_producer",
    "topic_configs",
]

logger = logging.getLogger(__name__)

_ADMIN_TIMEOUT = 10.0
# When a request that gets no answer is given up and goes to the partition's next leader. librdkafka's own minute would
# be one in which a single frozen broker, long replaced by the others, stops the relay.
_ANSWER_TIMEOUT_MS = 10_000
# How long a consumer may be busy before its partitions go to another. A batch waits 60 s at most for the row lock of a
# session that hangs, see the database's options; calls take up to three times ``http_calls.BUDGET``. A rebalance waits
# as long for members that are gone, when a broker came back and does not notice that they are.
_ROW_LOCK_MS = 60_000
_BUSY_MS = 90_000
_BUSY_CALLING_MS = 300_000

_CONNECTION_PROPERTIES = ("security.", "sasl.", "ssl.", "enable.ssl.", "https.", "broker.address.")

# Errors by which the broker refuses a message for good: sending it again is of no use.
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
# Errors that concern one of several topics asked for.
_ABOUT_ONE_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED})
PARTITION_EOF = KafkaError._PARTITION_EOF
# A partition has no leader for a moment when it is new or its broker goes away.
_LEADER_CHANGES = frozenset({KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})
_LEADER_CHANGE_PAUSE = 0.1
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def _base_config() -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.KAFKA_BOOTSTRAP_SERVERS,
        "error_cb": _log_client_error,
        "logger": logging.getLogger("librdkafka"),
        "reconnect.backoff.max.ms": 1000,
    }


def _log_client_error(error: KafkaError) -> None:
    logger.warning("kafka client: %s", error.str())


def make_producer() -> Producer:
    """A producer that never lets a message overtake an earlier one of its key.

    ``message.timeout.ms`` 0 means that no message gives up alone while later ones go on: see ``relay``.
    Create it after any fork.
    """
    return Producer(
        {
            **_base_config(),
            "socket.timeout.ms": _ANSWER_TIMEOUT_MS,
            "linger.ms": 5,
            "batch.num.messages": 10000,
            "queue.buffering.max.messages": 100000,
            "compression.type": "lz4",
            "message.max.bytes": DEAD_LETTER_MAX_BYTES,
            **settings.KAFKA_PRODUCER_CONFIG,
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            # The partitioner of the Java client, so that its producers put a key on the same partition.
            "partitioner": "murmur2_random",
            # Acknowledgements are counted by topic, see ``publisher``.
            "delivery.report.only.error": False,
        }
    )


def make_consumer(group_id: str, *, calls_out: bool = False) -> Consumer:
    """A consumer whose offsets move only by an explicit commit, and which reports the end of a partition.

    The end is where nothing more can be read: before an open transaction of another producer, and behind the markers
    of those that have ended. ``calls_out`` gives it the longer time between two polls that calls to services outside
    need.
    """
    return Consumer(
        {
            **_base_config(),
            "socket.timeout.ms": _ANSWER_TIMEOUT_MS,
            "session.timeout.ms": 10000,
            "heartbeat.interval.ms": 2000,
            "max.poll.interval.ms": _longest_busy_ms(calls_out),
            "fetch.wait.max.ms": 50,
            "queued.min.messages": 10000,
            **settings.KAFKA_CONSUMER_CONFIG,
            "group.id": group_id,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )


def _longest_busy_ms(calls_out: bool) -> int:
    """How long a batch may take: longer where the settings allow more tries, or more time for each."""
    tries, pause = settings.CONSUMER_MAX_ATTEMPTS, settings.CONSUMER_BACKOFF_SECONDS
    if not calls_out:
        return max(_BUSY_MS, int(_ROW_LOCK_MS + tries * pause * 1000))
    return max(_BUSY_CALLING_MS, int(tries * (BUDGET + settings.HTTP_TIMEOUT_SECONDS + pause) * 1000))


def _make_admin() -> AdminClient:
    # Who has to log in, or to speak TLS, says so in the producer's properties.
    connection = {
        name: value for name, value in settings.KAFKA_PRODUCER_CONFIG.items() if name.startswith(_CONNECTION_PROPERTIES)
    }
    return AdminClient({**_base_config(), **connection})


def check_client_options() -> None:
    """Raise BadClientOptions if librdkafka knows no such property, or not such a value. Connects to nothing."""
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
        _make_admin().list_topics(timeout=2)
    except KafkaException as error:
        raise ServiceUnavailable(
            f"Kafka at {settings.KAFKA_BOOTSTRAP_SERVERS} does not answer: {error.args[0].str()}"
        ) from error


def ensure_topics(routes: Mapping[str, Route]) -> tuple[list[str], list[str]]:
    """Create what is missing of the topics of ``routes``; returns (created, complaints).

    Names are with the prefix. A complaint is a line about a topic with fewer partitions or replicas than its route says
    (more are fine), or with a setting that breaks a promise, see ``topic_checks``. Nothing that exists is changed.
    Raises ServiceUnavailable if Kafka does not answer.
    """
    admin = _make_admin()
    wanted = _wanted_topics(routes)
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
    # A broker that has not heard of a new topic yet would not say its settings: they are those it was created with.
    configs = {
        name: config
        for name, config in topic_configs(wanted).items()
        if name not in created or not isinstance(config, KafkaError)
    }
    complaints = [
        complaint
        for name, config in configs.items()
        for complaint in _complaints(wanted[name], existing.get(name), config)
    ]
    return sorted(created), sorted(complaints)


def _list_all(admin: AdminClient, created: Collection[str]) -> dict[str, TopicMetadata]:
    """All topics that this user may see, once the broker that answers knows those just created."""
    deadline = time.monotonic() + _ADMIN_TIMEOUT
    while True:
        existing: dict[str, TopicMetadata] = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics
        if existing.keys() >= set(created) or time.monotonic() > deadline:
            return existing
        time.sleep(0.1)


def _complaints(
    wanted: WantedTopic, existing: TopicMetadata | None, config: dict[str, str] | KafkaError
) -> Iterable[str]:
    if isinstance(config, KafkaError):
        return [unreadable_complaint(wanted.name, config.str())]
    if existing is None:
        return [unreadable_complaint(wanted.name, "the broker does not list it")]
    partitions = existing.partitions.values()
    replicas = min((len(partition.replicas) for partition in partitions), default=0)
    return topic_complaints(wanted, FoundTopic(len(partitions), replicas, config))


def existing_topics() -> set[str]:
    """The names of all topics. Raises ServiceUnavailable if Kafka does not answer."""
    try:
        return set(_make_admin().list_topics(timeout=_ADMIN_TIMEOUT).topics)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not tell its topics: {error.args[0].str()}") from error


def topic_configs(names: Collection[str], *, timeout: float = _ADMIN_TIMEOUT) -> dict[str, dict[str, str] | KafkaError]:
    """The settings in force of topics (named with the prefix), or why the broker does not say them, by name.

    Defaults of the brokers are among them. Raises ServiceUnavailable if Kafka does not answer.
    """
    admin = _make_admin()
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str] | KafkaError] = {}
    try:
        futures = admin.describe_configs(resources, request_timeout=timeout) if resources else {}
        for resource, future in futures.items():
            try:
                found[resource.name] = {name: entry.value or "" for name, entry in future.result().items()}
            except KafkaException as error:
                if error.args[0].code() not in _ABOUT_ONE_TOPIC:
                    raise
                found[resource.name] = error.args[0]
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not tell the settings of its topics: {error.args[0].str()}") from error
    return found


def delete_topics(names: Iterable[str]) -> None:
    """Delete topics, named with the prefix, and all that is in them. Raises ServiceUnavailable if Kafka refuses."""
    # Kept until the futures are done: they die with their client.
    admin = _make_admin()
    topics = list(names)
    try:
        futures = admin.delete_topics(topics, operation_timeout=_ADMIN_TIMEOUT) if topics else {}
        for future in futures.values():
            future.result()
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka refused to delete topics: {error.args[0].str()}") from error


def _wanted_topics(routes: Mapping[str, Route]) -> dict[str, WantedTopic]:
    topics: dict[str, WantedTopic] = {}
    for route in routes.values():
        replicas = route.replicas or settings.KAFKA_REPLICATION_FACTOR
        events = WantedTopic(prefixed(route.topic), route.partitions, replicas, route.retention_ms, EVENT_MAX_BYTES)
        dead_letters = WantedTopic(
            prefixed(route.dead_letter_topic), 1, replicas, -1, DEAD_LETTER_MAX_BYTES, is_dead_letter_topic=True
        )
        topics |= {events.name: events, dead_letters.name: dead_letters}
    return topics


def _new_topic(wanted: WantedTopic) -> NewTopic:
    return NewTopic(
        wanted.name, num_partitions=wanted.partitions, replication_factor=wanted.replicas, config=wanted.config()
    )


def group_lag(group_id: str, topics: list[str]) -> int:
    """How many messages of ``topics`` (with prefix) the group has not committed.

    Raises ServiceUnavailable if that is unknown: Kafka does not answer, or all that is left is held back by an open
    transaction of another producer, whose messages, and those behind them, can be read only once it has ended.
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
        # After the commits, and the last stable offsets after the ends: what was on a topic when this was called is
        # handled if all three are the same.
        admin = _make_admin()
        first = _offsets(admin, partitions, _EARLIEST)
        ends = _offsets(admin, partitions, _LATEST)
        stable = _offsets(admin, partitions, _LATEST, IsolationLevel.READ_COMMITTED)
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka does not tell the lag of {group_id}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    # An offset that is not there (none committed, or the topic was made anew) means: from the beginning.
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
            f"an open transaction of another producer on {', '.join(held_back)} holds back what is behind it from"
            f" {group_id}: have that producer end it, or wait for its transaction.timeout.ms"
        )
    return lag


def _offsets(
    admin: AdminClient,
    partitions: Sequence[TopicPartition],
    spec: OffsetSpec,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
) -> list[int]:
    """An offset of each partition; the latest with READ_COMMITTED is where its first open transaction begins."""
    if not partitions:
        return []
    wanted = {TopicPartition(item.topic, item.partition): spec for item in partitions}
    give_up_at = time.monotonic() + _ADMIN_TIMEOUT
    while True:
        futures = admin.list_offsets(wanted, isolation_level=isolation, request_timeout=_ADMIN_TIMEOUT)
        try:
            offsets = {(item.topic, item.partition): future.result().offset for item, future in futures.items()}
            return [offsets[item.topic, item.partition] for item in partitions]
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_CHANGES or time.monotonic() >= give_up_at:
                raise
        time.sleep(_LEADER_CHANGE_PAUSE)
