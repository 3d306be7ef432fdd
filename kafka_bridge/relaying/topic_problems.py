"""Topics that accept no messages, and why: the relay's log lines and the alert that names the topic."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from django.conf import settings

from common.processes.outages import ServiceUnavailable

from ..client import KafkaError, KafkaException, Producer, TopicMetadata, topic_configs
from ..operating.alerts import end_alert, end_alerts, open_alert
from ..outbox.writing import anything_unpublished
from ..registry import unprefixed
from ..routes import topics_of

RUNBOOK = "docs/operations.md#a-topic-that-takes-no-messages"
_RULE = "topic-"
_RULE_LENGTH = 64
# Timeout of a request to the brokers. Two of them must fit into the relay's leases, which expire after 10 s.
_REQUEST_SECONDS = 2.0

_MISSING = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_FORBIDDEN = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
_FEW_REPLICAS = frozenset({KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND})
# Errors of the whole client, not of a topic: the relay makes a new client.
_CLIENT_ERRORS = frozenset({KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})


class TopicProblem(NamedTuple):
    """Why a topic (named with the prefix) accepts no messages, and what to do.

    ``is_lasting`` False: the next attempt may succeed, so a log line without an alert is enough.
    """

    topic: str
    reason: str
    remedy: str
    is_lasting: bool = True

    def __str__(self) -> str:
        return f"topic {self.topic} {self.reason}: {self.remedy}"


def problem_of_error(topic: str, error: KafkaError) -> TopicProblem:
    """Return the problem of a topic that a delivery error indicates."""
    code, name = error.code(), error.name()
    if code in _MISSING:
        return _missing(topic)
    if code in _FORBIDDEN:
        remedy = "allow the relay's Kafka user DESCRIBE and WRITE on it"
        return TopicProblem(topic, f"refuses messages ({name})", remedy)
    if code in _FEW_REPLICAS:
        return TopicProblem(topic, f"has too few in-sync replicas ({name})", "bring its brokers back")
    if code == KafkaError.INVALID_TIMESTAMP:
        remedy = "set the clocks of relay and brokers, or raise message.timestamp.before.max.ms and .after.max.ms"
        return TopicProblem(topic, f"refuses the messages' time ({name})", remedy)
    is_lasting = not error.fatal() and code not in _CLIENT_ERRORS
    return TopicProblem(topic, f"takes no messages ({name}: {error.str()})", "see the broker's log", is_lasting)


def find_problems(producer: Producer, unacknowledged: Mapping[str, int]) -> list[TopicProblem]:
    """Ask the brokers why messages are not acknowledged; return one problem per topic.

    ``unacknowledged``: number of messages by topic, named with the prefix. Makes two requests to the brokers, of up to
    2 s each.
    """
    try:
        metadata = producer.list_topics(timeout=_REQUEST_SECONDS).topics
    except KafkaException as error:
        reason = f"takes no messages, and no broker answers ({error.args[0].str()})"
        remedy = "bring Kafka back, or correct KAFKA_BOOTSTRAP_SERVERS"
        return [TopicProblem(topic, reason, remedy) for topic in unacknowledged]
    min_in_sync = _min_in_sync(metadata, unacknowledged)
    return [
        _problem_of_metadata(topic, number, metadata.get(topic), min_in_sync.get(topic))
        for topic, number in unacknowledged.items()
    ]


def _problem_of_metadata(topic: str, number: int, found: TopicMetadata | None, min_in_sync: int | None) -> TopicProblem:
    if found is None:
        return _missing(topic)
    if found.error is not None:
        return problem_of_error(topic, found.error)
    partitions = found.partitions.values()
    if without_leader := sorted(partition.id for partition in partitions if partition.leader < 0):
        return TopicProblem(topic, f"has no leader for partitions {without_leader}", "bring their brokers back")
    fewest = min((len(partition.isrs) for partition in partitions), default=0)
    if min_in_sync is not None and fewest < min_in_sync:
        reason = f"has {fewest} in-sync replicas and min.insync.replicas is {min_in_sync}"
        return TopicProblem(topic, reason, "bring its brokers back, or correct min.insync.replicas")
    leaders = sorted({partition.leader for partition in partitions})
    return TopicProblem(topic, f"does not acknowledge {number} messages", f"look at the brokers {leaders}, its leaders")


def _min_in_sync(metadata: Mapping[str, TopicMetadata], topics: Collection[str]) -> dict[str, int]:
    """Return ``min.insync.replicas`` of the topics that exist; empty if the brokers do not answer."""
    try:
        configs = topic_configs([topic for topic in topics if topic in metadata], timeout=_REQUEST_SECONDS)
    except ServiceUnavailable:
        return {}
    return {
        topic: int(config["min.insync.replicas"])
        for topic, config in configs.items()
        if not isinstance(config, KafkaError)
    }


def _missing(topic: str) -> TopicProblem:
    is_routed = unprefixed(topic) in topics_of(settings.KAFKA_ROUTES)
    remedy = "run create_topics" if is_routed else "KAFKA_ROUTES names it no more: create it with kafka-topics.sh"
    return TopicProblem(topic, "does not exist", remedy)


class TopicAlerts:
    """The alerts of one relay: at most one open per topic, ended once the topic accepts messages."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        # Topics that have accepted messages since this relay started; alerts of an earlier relay on them are ended.
        self._accepting: set[str] = set()
        self._is_clean = False

    def open(self, problems: Sequence[TopicProblem]) -> None:
        """Open an alert for each lasting problem. Raises what the database raises."""
        for problem in problems:
            if problem.is_lasting:
                self._accepting.discard(problem.topic)
                self._open.add(problem.topic)
                open_alert(rule=_rule(problem.topic), severity="critical", summary=str(problem), runbook=RUNBOOK)

    def end(self, topics: Collection[str]) -> None:
        """End the alerts of ``topics``, which accepted messages. Raises what the database raises."""
        for topic in [topic for topic in topics if topic not in self._accepting]:
            end_alert(_rule(topic))
            self._open.discard(topic)
            self._accepting.add(topic)

    def end_all(self) -> None:
        """End all open alerts: this relay has no unpublished row, so what they reported is published or deleted."""
        self.end(tuple(self._open))

    def end_left_over(self) -> None:
        """End the alerts of relays that died, once no row is unpublished. Makes a query per call until then."""
        if not self._is_clean and not anything_unpublished():
            end_alerts(_RULE)
            self._is_clean = True


def _rule(topic: str) -> str:
    rule = f"{_RULE}{topic}"
    if len(rule) <= _RULE_LENGTH:
        return rule
    return f"{rule[: _RULE_LENGTH - 9]}-{zlib.crc32(topic.encode()):08x}"
