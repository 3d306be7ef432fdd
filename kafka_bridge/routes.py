"""Routes of event types to topics, and the ids of consumer groups, with what an operator lays over them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# The fields that may be a message key, as the body has them and as a Struct calls them.
KEY_FIELDS = {"couponType": "coupon_type", "couponId": "coupon_id", "orderId": "order_id"}


# Keys of the same events: each of their bodies has all of them.
_INTERCHANGEABLE = (frozenset({"couponType", "couponId"}),)


# Kafka takes 249 characters for a topic: names leave room for the prefix, and for what follows in a derived name.
LONGEST_PREFIX = 64


LONGEST_NAME = 180


_TOPIC_NAME = re.compile(rf"(?!\.{{1,2}}\Z)[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}")


TOPIC_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{1,{LONGEST_PREFIX}}}")


# Brokers create 10,000 partitions in one request at the most, and every topic of the table may have so many.
MOST_PARTITIONS = 1_000


MOST_REPLICAS = 9


# What is gone before an outage ends is lost; a hundred years are as good as for ever, and fit Kafka's arithmetic.
LEAST_RETENTION_MS = 3_600_000


MOST_RETENTION_MS = 100 * 365 * 24 * 3_600_000


_RANGES = {"partitions": (1, MOST_PARTITIONS), "replicas": (1, MOST_REPLICAS)}


_OVERLAY_FIELDS = {
    "topic": "topic",
    "key": "key",
    "partitions": "partitions",
    "replicas": "replicas",
    "retentionMs": "retention_ms",
    "deadLetterTopic": "dead_letter_topic",
}


_TOPIC_FIELDS = frozenset({"topic", "deadLetterTopic"})


_TEXT_FIELDS = _TOPIC_FIELDS | {"key"}


@dataclass(frozen=True, slots=True)
class Route:
    """Where the events of one type go.

    ``topic`` and ``dead_letter_topic`` are names without ``KAFKA_TOPIC_PREFIX``; ``key`` names the body field
    whose value is the message key; ``replicas`` None means ``KAFKA_REPLICATION_FACTOR``; ``retention_ms`` -1
    keeps everything.
    """

    topic: str
    key: str
    partitions: int
    replicas: int | None = None
    retention_ms: int = -1
    dead_letter_topic: str = ""

    def __post_init__(self) -> None:
        if not self.dead_letter_topic:
            object.__setattr__(self, "dead_letter_topic", f"{self.topic}.DLT")


def overlay_routes(defaults: Mapping[str, Route], overlay: object) -> dict[str, Route]:
    """The routes with the ``KAFKA_ROUTES`` setting laid over them.

    ``overlay`` has the shape ``{"<ce_type>": {"topic", "key", "partitions", "replicas", "retentionMs",
    "deadLetterTopic"}}``, each optional. Raises ValueError with a message for the operator.
    """
    if not isinstance(overlay, dict):
        raise ValueError("must be a JSON object of event types")
    routes = dict(defaults)
    for event_type, changes in overlay.items():
        if event_type not in routes:
            raise ValueError(f"unknown event type {event_type!r}; known: {', '.join(sorted(routes))}")
        if not isinstance(changes, dict):
            raise ValueError(f"{event_type}: must be a JSON object")
        routes[event_type] = _overlay_route(event_type, routes[event_type], changes)
    _refuse_disagreement(routes)
    return routes


def _overlay_route(event_type: str, route: Route, changes: dict[str, Any]) -> Route:
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in _OVERLAY_FIELDS:
            raise ValueError(f"{event_type}: unknown field {name!r}; known: {', '.join(_OVERLAY_FIELDS)}")
        if why := _text_refusal(name, value) if name in _TEXT_FIELDS else _number_refusal(name, value):
            raise ValueError(f"{event_type}: {name} must be {why}")
        values[_OVERLAY_FIELDS[name]] = value
    keys = next((keys for keys in _INTERCHANGEABLE if route.key in keys), {route.key})
    if values.get("key", route.key) not in keys:
        raise ValueError(f"{event_type}: key must be {' or '.join(sorted(keys))}")
    # A dead-letter topic that was only derived from the old name follows the new one.
    if route.dead_letter_topic == f"{route.topic}.DLT":
        values.setdefault("dead_letter_topic", "")
    return replace(route, **values)


def _text_refusal(name: str, value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return "a text"
    if name in _TOPIC_FIELDS and not _TOPIC_NAME.fullmatch(value):
        return f"letters, digits, '.', '_' and '-', {LONGEST_NAME} at the most"
    return None


def _number_refusal(name: str, value: object) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return "a whole number"
    if name == "retentionMs":
        if value == -1 or LEAST_RETENTION_MS <= value <= MOST_RETENTION_MS:
            return None
        return f"-1 (for ever) or from {LEAST_RETENTION_MS} (an hour) to {MOST_RETENTION_MS} (a hundred years)"
    low, high = _RANGES[name]
    return None if low <= value <= high else f"from {low} to {high}"


def _refuse_disagreement(routes: Mapping[str, Route]) -> None:
    """Event types may share a topic, but a topic has one number of partitions, replicas and one retention."""
    by_topic: dict[str, tuple[str, Route]] = {}
    for event_type, route in routes.items():
        other_type, other = by_topic.setdefault(route.topic, (event_type, route))
        if (route.partitions, route.replicas, route.retention_ms) != (
            other.partitions,
            other.replicas,
            other.retention_ms,
        ):
            raise ValueError(
                f"{other_type} and {event_type} share the topic {route.topic!r} but differ in partitions, "
                "replicas or retentionMs"
            )


def overlay_groups(defaults: Mapping[str, str], overlay: object) -> dict[str, str]:
    """Consumer group ids by group name with the ``KAFKA_GROUPS`` setting laid over them; ValueError if bad."""
    if not isinstance(overlay, dict):
        raise ValueError("must be a JSON object of group names")
    for name, group_id in overlay.items():
        if name not in defaults:
            raise ValueError(f"unknown group {name!r}; known: {', '.join(sorted(defaults))}")
        # librdkafka ends the process over an id of blanks, and brokers' tools expect a topic's characters.
        if not isinstance(group_id, str) or not _TOPIC_NAME.fullmatch(group_id):
            raise ValueError(
                f"{name}: the group id must be letters, digits, '.', '_' and '-', {LONGEST_NAME} at the most"
            )
    groups = {**defaults, **overlay}
    if len(set(groups.values())) < len(groups):
        raise ValueError("two groups share one id: each effect needs offsets of its own")
    return groups


def topics_of(routes: Mapping[str, Route]) -> set[str]:
    """The topics that ``routes`` name, dead-letter topics included, without the prefix."""
    return {route.topic for route in routes.values()} | {route.dead_letter_topic for route in routes.values()}
