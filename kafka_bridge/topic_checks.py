"""Checks of topic settings: which ones break a guarantee of the service, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.conf import settings

# Kafka's default of max.message.bytes. An event of the outbox fits (a body of 900,000 bytes, and headers), and so does
# every batch of the producer (1,000,000 bytes), which the broker accepts or refuses as a whole.
EVENT_MAX_BYTES = 1_048_588
# Messages of other producers may be larger than events, and their dead letters have additional headers.
DEAD_LETTER_MAX_BYTES = 2 * 1024 * 1024
# Messages of a machine whose clock is wrong by up to five minutes must be accepted.
_LEAST_CLOCK_TOLERANCE_MS = 300_000


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic as its route configures it. ``name`` has the prefix; ``retention_ms`` -1 keeps messages for ever."""

    name: str
    partitions: int
    replicas: int
    retention_ms: int
    least_message_bytes: int
    is_dead_letter_topic: bool = False

    @property
    def min_insync_replicas(self) -> int:
        """2 with three replicas: one broker may be down, and every acknowledged message is on two brokers."""
        return 2 if self.replicas >= 3 else 1

    def config(self) -> dict[str, str]:
        """Return the settings to create the topic with; they override the brokers' defaults."""
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            "min.insync.replicas": str(self.min_insync_replicas),
        }
        if self.is_dead_letter_topic:
            config["max.message.bytes"] = str(self.least_message_bytes)
        return config


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """An existing topic: ``replicas`` is the least of its partitions, ``config`` includes the brokers' defaults."""

    partitions: int
    replicas: int
    config: Mapping[str, str]


def topic_complaints(wanted: WantedTopic, found: FoundTopic) -> Iterator[str]:
    """Yield a line per setting that breaks a guarantee: topic, setting, value, reason and remedy.

    More partitions, replicas, bytes or retention than required are fine.
    """
    if found.partitions < wanted.partitions:
        yield (
            f"{wanted.name}: has {found.partitions} partitions, its route says {wanted.partitions}: add them as"
            ' docs/operations.md describes ("Adding partitions to a live topic"), or correct KAFKA_ROUTES'
        )
    if found.replicas < wanted.replicas:
        yield (
            f"{wanted.name}: has partitions with {found.replicas} replicas, its route says {wanted.replicas}: add"
            " replicas with kafka-reassign-partitions.sh, or correct KAFKA_ROUTES or KAFKA_REPLICATION_FACTOR"
        )
    for name, must_be, value, why in _wrong_settings(wanted, found):
        yield (
            f"{wanted.name}: {name} is {found.config[name] or 'empty'}, must be {must_be}: {why}; "
            f"kafka-configs.sh --bootstrap-server {settings.KAFKA_BOOTSTRAP_SERVERS} --alter --entity-type topics "
            f"--entity-name {wanted.name} --add-config {name}={value}"
        )


def unreadable_complaint(name: str, reason: str) -> str:
    """Return the line about a topic whose settings the broker does not return."""
    remedy = "allow this Kafka user DESCRIBE and DESCRIBE_CONFIGS on the topic"
    return f"{name}: its settings cannot be read ({reason}): {remedy}"


# Setting, its valid values in words, one valid value, and what breaks otherwise.
_Wrong = tuple[str, str, str, str]


def _wrong_settings(wanted: WantedTopic, found: FoundTopic) -> Iterator[_Wrong]:
    """Yield the wrong settings; one that this version of Kafka does not have is no fault."""
    yield from _wrong_retention(wanted, found.config)
    yield from _wrong_replication(wanted, found)
    if _is_less(found.config, "max.message.bytes", wanted.least_message_bytes):
        why = f"larger {_messages(wanted)}, or batches of them, are refused"
        yield "max.message.bytes", f"{wanted.least_message_bytes} or more", str(wanted.least_message_bytes), why
    # With LogAppendTime the broker sets the timestamp and checks no limit.
    if found.config.get("message.timestamp.type") != "LogAppendTime":
        for name in _TIME_LIMITS:
            if _is_less(found.config, name, _LEAST_CLOCK_TOLERANCE_MS):
                why = "messages of a process whose clock is wrong by minutes are refused"
                yield name, f"{_LEAST_CLOCK_TOLERANCE_MS} or more", str(_LEAST_CLOCK_TOLERANCE_MS), why


_TIME_LIMITS = (
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
    # In brokers before 3.6.
    "message.timestamp.difference.max.ms",
)


def _wrong_retention(wanted: WantedTopic, config: Mapping[str, str]) -> Iterator[_Wrong]:
    kept = "for ever" if wanted.retention_ms < 0 else f"for {wanted.retention_ms} ms, as the route says"
    messages = f"{_messages(wanted)} are to be kept {kept}"
    if "compact" in config.get("cleanup.policy", ""):
        yield "cleanup.policy", "delete", "delete", f"{messages}, and compaction removes all but the last of a key"
    elif config.get("cleanup.policy") == "":
        # Without a policy nothing is deleted.
        return
    retention = _number(config, "retention.ms")
    if retention is not None and retention >= 0 and (wanted.retention_ms < 0 or retention < wanted.retention_ms):
        least = "-1" if wanted.retention_ms < 0 else f"{wanted.retention_ms} or more, or -1"
        yield "retention.ms", least, str(wanted.retention_ms), messages
    if (_number(config, "retention.bytes") or 0) > 0:
        yield "retention.bytes", "-1", "-1", f"{messages}, and past that size the oldest are deleted"


def _wrong_replication(wanted: WantedTopic, found: FoundTopic) -> Iterator[_Wrong]:
    least = wanted.min_insync_replicas
    in_sync = _number(found.config, "min.insync.replicas")
    if in_sync is not None and in_sync > found.replicas:
        why = f"the topic has {found.replicas} replicas, so nothing can be written, or not once a broker is away"
        yield "min.insync.replicas", f"{least} to {found.replicas}", str(min(least, found.replicas)), why
    elif in_sync is not None and in_sync == found.replicas >= 3:
        why = "nothing can be written while one broker is away"
        yield "min.insync.replicas", f"{least} to {found.replicas - 1}", str(least), why
    elif in_sync is not None and in_sync < least <= found.replicas:
        why = "an acknowledged message may be on one broker alone, and lost with it"
        yield "min.insync.replicas", f"{least} or more", str(least), why
    if found.replicas > 1 and found.config.get("unclean.leader.election.enable") == "true":
        why = "a broker that was behind may become the leader, and acknowledged messages are lost"
        yield "unclean.leader.election.enable", "false", "false", why


def _messages(wanted: WantedTopic) -> str:
    return "dead letters" if wanted.is_dead_letter_topic else "events"


def _number(config: Mapping[str, str], name: str) -> int | None:
    value = config.get(name)
    return int(value) if value else None


def _is_less(config: Mapping[str, str], name: str, least: int) -> bool:
    number = _number(config, name)
    return number is not None and number < least
