"""Topics that accept no messages, and why: the relay's log lines and the alert that names the topic."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from django.conf import settings

from common.processes.outages import ServiceUnavailable

from ..client import KafkaError, KafkaException, Producer, topic_configs
from ..operating.alerts import clear_alert, clear_alerts, open_alert
from ..operating.outbox_alarms import TOPIC
from ..outbox.published import anything_unpublished
from ..registry import unprefixed
from ..routes import topics_of

logger = logging.getLogger(__name__)

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

    ``is_lasting`` False: the next attempt may succeed, so a log line without an alert is enough. ``is_search``: a row
    that the broker refuses is searched for, so the rest is to be sent again. ``of_cluster``: no broker answers, so
    other topics have the same problem.
    """

    topic: str
    reason: str
    remedy: str
    is_lasting: bool = True
    is_missing: bool = False
    is_search: bool = False
    of_cluster: bool = False

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


def find_problem(producer: Producer, topic: str) -> TopicProblem | None:
    """Ask the brokers why ``topic`` (with the prefix) accepts no messages; return None if they see no reason.

    Makes two requests to the brokers, of up to 2 s each.
    """
    try:
        # A list of all topics leaves out those that this user may not describe; a request for one names the reason.
        found = producer.list_topics(topic, timeout=_REQUEST_SECONDS).topics.get(topic)
    except KafkaException as error:
        reason = f"takes no messages, and no broker answers ({error.args[0].str()})"
        remedy = "bring Kafka back, or correct KAFKA_BOOTSTRAP_SERVERS"
        return TopicProblem(topic, reason, remedy, of_cluster=True)
    if found is None:
        return _missing(topic)
    if found.error is not None:
        return problem_of_error(topic, found.error)
    partitions = found.partitions.values()
    if without_leader := sorted(partition.id for partition in partitions if partition.leader < 0):
        return TopicProblem(topic, f"has no leader for partitions {without_leader}", "bring their brokers back")
    fewest = min((len(partition.isrs) for partition in partitions), default=0)
    min_in_sync = _min_in_sync(topic)
    if fewest < min_in_sync:
        reason = f"has {fewest} in-sync replicas and min.insync.replicas is {min_in_sync}"
        return TopicProblem(topic, reason, "bring its brokers back, or correct min.insync.replicas")
    return None


def refusal(topic: str) -> TopicProblem:
    """Return the problem of a topic that refuses a row, while the rows before it are sent one by one to find it."""
    remedy = "none is needed, it becomes a dead letter once it is found"
    return TopicProblem(topic, "refuses a message", remedy, is_lasting=False, is_search=True)


def silence(topic: str, number: int) -> TopicProblem:
    """Return the problem of a topic that does not acknowledge ``number`` messages, and the brokers see no reason."""
    return TopicProblem(
        topic, f"does not acknowledge {number} messages", "look at the brokers that lead its partitions"
    )


def _min_in_sync(topic: str) -> int:
    """Return ``min.insync.replicas`` of the topic; 0 if the brokers do not answer."""
    try:
        config = topic_configs([topic], timeout=_REQUEST_SECONDS)[topic]
    except ServiceUnavailable:
        return 0
    return 0 if isinstance(config, KafkaError) else int(config["min.insync.replicas"])


def _missing(topic: str) -> TopicProblem:
    is_routed = unprefixed(topic) in topics_of(settings.KAFKA_ROUTES)
    remedy = "run create_topics" if is_routed else "KAFKA_ROUTES names it no more: create it with kafka-topics.sh"
    return TopicProblem(topic, "does not exist", remedy, is_missing=True)


class TopicAlerts:
    """The alerts of one relay: at most one open per topic, ended once the topic accepts messages."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        # Topics that have accepted messages since this relay started; alerts of an earlier relay on them are ended.
        self._accepting: set[str] = set()
        self._is_clean = False

    def open(self, problem: TopicProblem) -> None:
        """Open an alert for a lasting problem. Raises what the database raises."""
        if problem.topic not in self._open:
            logger.warning("%s", problem)
        if problem.is_lasting:
            self._accepting.discard(problem.topic)
            self._open.add(problem.topic)
            open_alert(TOPIC, str(problem), subject=problem.topic)

    def end(self, topics: Collection[str]) -> None:
        """End the alerts of ``topics``, which accept messages. Raises what the database raises."""
        for topic in [topic for topic in topics if topic not in self._accepting]:
            clear_alert(TOPIC, subject=topic)
            self._open.discard(topic)
            self._accepting.add(topic)

    def end_all(self, *, but: Collection[str]) -> None:
        """End all open alerts except those of the topics ``but``: the rows of the others are published or deleted."""
        self.end([topic for topic in self._open if topic not in but])

    def end_left_over(self) -> None:
        """End the alerts of relays that died, once no row is unpublished. Makes a query per call until then."""
        if not self._is_clean and not anything_unpublished():
            clear_alerts(TOPIC)
            self._is_clean = True
