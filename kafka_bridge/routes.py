"""Routes of event types to topics and ids of consumer groups, with the operator's overlays."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

# Kafka allows 249 characters in a topic name: 180 + 64 leave room for the suffix of a derived name (".DLT").
LONGEST_PREFIX = 64
LONGEST_NAME = 180

_TOPIC_NAME = re.compile(rf"(?!\.{{1,2}}\Z)[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}")
TOPIC_PREFIX = re.compile(rf"(?!__)[A-Za-z0-9._-]{{1,{LONGEST_PREFIX}}}")
# Brokers keep offsets and transactions in topics whose names begin so.
_INTERNAL = "__"

# Brokers create at most 10,000 partitions in one request, and each topic of the routes may have this many.
MOST_PARTITIONS = 1_000
MOST_REPLICAS = 9

# With less than an hour messages could be deleted before an outage ends. A hundred years are as good as for ever, and
# fit Kafka's arithmetic.
LEAST_RETENTION_MS = 3_600_000
MOST_RETENTION_MS = 100 * 365 * 24 * 3_600_000

# Topics that earlier routes named, per event type.
MOST_FORMER_TOPICS = 20

# Each consumer is a thread with a database connection and a Kafka client.
MOST_CONSUMERS = 64

_RANGES = {
    "partitions": (1, MOST_PARTITIONS),
    "replicas": (1, MOST_REPLICAS),
    "deadLetterPartitions": (1, MOST_PARTITIONS),
}
# A field of the body in braces, with text around it: `coupon:{couponId}`.
_KEY_TEMPLATE = re.compile(r"(?P<before>[ -z|~]{0,100})\{(?P<field>[A-Za-z]+)\}(?P<after>[ -z|~]{0,100})")

_OVERLAY_FIELDS = {
    "topic": "topic",
    "key": "key",
    "partitions": "partitions",
    "replicas": "replicas",
    "retentionMs": "retention_ms",
    "deadLetterTopic": "dead_letter_topic",
    "deadLetterPartitions": "dead_letter_partitions",
}
_TOPIC_FIELDS = frozenset({"topic", "deadLetterTopic"})
_TEXT_FIELDS = _TOPIC_FIELDS | {"key"}


@dataclass(frozen=True, slots=True)
class Route:
    """The topic, key and topic settings of one event type.

    ``topic`` and ``dead_letter_topic`` are names without ``KAFKA_TOPIC_PREFIX``; ``key`` names the body field
    whose value is the message key, or has it in braces (``coupon:{couponId}``); ``replicas`` None means
    ``KAFKA_REPLICATION_FACTOR``; ``retention_ms`` -1 keeps everything.
    """

    topic: str
    key: str
    partitions: int
    replicas: int | None = None
    retention_ms: int = -1
    dead_letter_topic: str = ""
    dead_letter_partitions: int = 1

    def __post_init__(self) -> None:
        if not self.dead_letter_topic:
            object.__setattr__(self, "dead_letter_topic", f"{self.topic}.DLT")

    @property
    def key_field(self) -> str:
        """The body field in the key."""
        return _key_parts(self.key)[1]

    def key_of(self, value: object) -> bytes:
        """Return the message key for ``value`` of the key's field; None counts as empty."""
        before, _, after = _key_parts(self.key)
        return f"{before}{'' if value is None else value}{after}".encode()


@cache
def _key_parts(key: str) -> tuple[str, str, str]:
    """Return the text before the field, the field, and the text after it. Raises ValueError for a broken template."""
    if "{" not in key and "}" not in key:
        return "", key, ""
    if not (template := _KEY_TEMPLATE.fullmatch(key)):
        raise ValueError('one field in braces, as in "coupon:{couponId}", with up to 100 characters of ASCII around it')
    return template["before"], template["field"], template["after"]


def overlay_routes(
    defaults: Mapping[str, Route],
    overlay: object,
    *,
    prefix: str = "",
    interchangeable_keys: Collection[Collection[str]] = (),
) -> dict[str, Route]:
    """Return the routes with the ``KAFKA_ROUTES`` setting laid over them.

    ``overlay`` has the shape ``{"<ce_type>": {"topic", "key", "partitions", "replicas", "retentionMs",
    "deadLetterTopic", "deadLetterPartitions"}}``, each optional; ``prefix`` is ``KAFKA_TOPIC_PREFIX``.
    ``interchangeable_keys`` are sets of key fields: a route's key may be replaced by another key of its set, alone or
    in a template. Raises ValueError with a message for the operator.
    """
    if not isinstance(overlay, dict):
        raise ValueError("must be a JSON object of event types")
    routes = dict(defaults)
    for event_type, changes in overlay.items():
        if event_type not in routes:
            raise ValueError(f"unknown event type {event_type!r}; known: {', '.join(sorted(routes))}")
        if not isinstance(changes, dict):
            raise ValueError(f"{event_type}: must be a JSON object")
        route = routes[event_type]
        keys = next((keys for keys in interchangeable_keys if route.key_field in keys), (route.key_field,))
        routes[event_type] = _overlay_route(event_type, route, changes, keys, prefix)
    _refuse_disagreement(routes)
    return routes


def _overlay_route(event_type: str, route: Route, changes: dict[str, Any], keys: Collection[str], prefix: str) -> Route:
    """``keys`` are the key fields that the route may have."""
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in _OVERLAY_FIELDS:
            raise ValueError(f"{event_type}: unknown field {name!r}; known: {', '.join(_OVERLAY_FIELDS)}")
        if why := _text_refusal(name, value, prefix) if name in _TEXT_FIELDS else _number_refusal(name, value):
            raise ValueError(f"{event_type}: {name} must be {why}")
        values[_OVERLAY_FIELDS[name]] = value
    try:
        field = _key_parts(values.get("key", route.key))[1]
    except ValueError as error:
        raise ValueError(f"{event_type}: key must be {error}") from None
    if field not in keys:
        raise ValueError(
            f"{event_type}: key must be {' or '.join(sorted(keys))}, alone or in braces with text around it"
        )
    # A dead-letter topic whose name was derived from the old topic is derived from the new one.
    if route.dead_letter_topic == f"{route.topic}.DLT":
        values.setdefault("dead_letter_topic", "")
    return replace(route, **values)


def _text_refusal(name: str, value: object, prefix: str) -> str | None:
    if not isinstance(value, str) or not value:
        return "a text"
    return _topic_refusal(value, prefix) if name in _TOPIC_FIELDS else None


def _topic_refusal(topic: object, prefix: str) -> str | None:
    """Return what a topic must be if ``topic`` (without ``prefix``) cannot be one."""
    if not isinstance(topic, str) or not _TOPIC_NAME.fullmatch(topic):
        return f"letters, digits, '.', '_' and '-', {LONGEST_NAME} at the most"
    # Without the prefix too: a deployment that copies the setting may have none.
    if topic.startswith(_INTERNAL) or f"{prefix}{topic}".startswith(_INTERNAL):
        return (
            f"a name that does not begin with '{_INTERNAL}', with KAFKA_TOPIC_PREFIX or without: those are Kafka's own"
        )
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
    """Raise ValueError if event types differ in partitions, replicas or retention of a topic, or in what it is for."""
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
    letters: dict[str, tuple[str, int]] = {}
    for event_type, route in routes.items():
        # The topic's consumers would read their own dead letters.
        if route.dead_letter_topic in by_topic:
            raise ValueError(
                f"{event_type} sends its dead letters to the event topic {route.dead_letter_topic!r}: name another"
                " deadLetterTopic"
            )
        other_type, partitions = letters.setdefault(route.dead_letter_topic, (event_type, route.dead_letter_partitions))
        if route.dead_letter_partitions != partitions:
            raise ValueError(
                f"{other_type} and {event_type} share the dead-letter topic {route.dead_letter_topic!r} but differ in"
                " deadLetterPartitions: set the same for both"
            )


def overlay_groups(defaults: Mapping[str, str], overlay: object, *, may_share: Collection[str] = ()) -> dict[str, str]:
    """Return consumer group ids by group name with the ``KAFKA_GROUPS`` setting laid over them.

    Only the groups ``may_share`` may have an id in common. Raises ValueError with a message for the operator.
    """
    changes = _group_values(defaults, overlay)
    for name, group_id in changes.items():
        # librdkafka aborts the process on a blank id, and Kafka's tools expect the characters of a topic name.
        if not isinstance(group_id, str) or not _TOPIC_NAME.fullmatch(group_id):
            raise ValueError(
                f"{name}: the group id must be letters, digits, '.', '_' and '-', {LONGEST_NAME} at the most"
            )
    groups = {**defaults, **changes}
    for name, group_id in groups.items():
        # Operators name a group by either.
        if group_id in groups and group_id != name:
            raise ValueError(f"{name}: the id must not be {group_id!r}, which is the name of another group")
        others = [other for other, other_id in groups.items() if other_id == group_id and other != name]
        if others and name not in may_share:
            sharers = f"; only these may: {', '.join(may_share)}" if may_share else ""
            raise ValueError(
                f"{name} and {others[0]} share the id {group_id!r}: {name} needs offsets of its own{sharers}"
            )
    return groups


def overlay_concurrency(groups: Collection[str], overlay: object) -> dict[str, int]:
    """Return the consumers per process by group name, 1 unless ``overlay`` has another number.

    Raises ValueError with a message for the operator.
    """
    changes = _group_values(groups, overlay)
    for name, number in changes.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_CONSUMERS:
            raise ValueError(f"{name}: must be a whole number from 1 to {MOST_CONSUMERS}")
    return {**dict.fromkeys(groups, 1), **changes}


def former_topics(routes: Mapping[str, Route], overlay: object, *, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Return the topics of earlier routes by event type, from the ``KAFKA_FORMER_TOPICS`` setting.

    ``overlay`` has the shape ``{"<ce_type>": ["<topic>", ...]}``, names without ``prefix``; most types have none.
    Raises ValueError with a message for the operator.
    """
    if not isinstance(overlay, dict):
        raise ValueError("must be a JSON object of event types")
    letters = {route.dead_letter_topic for route in routes.values()}
    for event_type, topics in overlay.items():
        if event_type not in routes:
            raise ValueError(f"unknown event type {event_type!r}; known: {', '.join(sorted(routes))}")
        if not isinstance(topics, list) or len(topics) > MOST_FORMER_TOPICS:
            raise ValueError(f"{event_type}: must be a list of up to {MOST_FORMER_TOPICS} topics")
        for topic in topics:
            if why := _topic_refusal(topic, prefix):
                raise ValueError(f"{event_type}: a topic must be {why}")
            if topic == routes[event_type].topic:
                raise ValueError(f"{event_type}: {topic!r} is its topic in KAFKA_ROUTES, remove it")
            if topic in letters:
                raise ValueError(f"{event_type}: {topic!r} is a dead-letter topic in KAFKA_ROUTES, remove it")
    return {event_type: tuple(dict.fromkeys(topics)) for event_type, topics in overlay.items()}


def _group_values(known: Collection[str], overlay: object) -> dict[str, Any]:
    """Return ``overlay`` as values by group name. Raises ValueError unless it is an object of ``known`` groups."""
    if not isinstance(overlay, dict):
        raise ValueError("must be a JSON object of group names")
    if unknown := next((name for name in overlay if name not in known), None):
        raise ValueError(f"unknown group {unknown!r}; known: {', '.join(sorted(known))}")
    return overlay


def topics_of(routes: Mapping[str, Route]) -> set[str]:
    """Return the topics of ``routes``, dead-letter topics included, without the prefix."""
    return {route.topic for route in routes.values()} | {route.dead_letter_topic for route in routes.values()}
