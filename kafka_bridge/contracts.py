"""The shape of what goes over the wire: routes, CloudEvents headers, and events as frozen values."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

SOURCE = b"/coupon-service"

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
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<later_fields>-.*)?",
    re.DOTALL,
)

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


def encode_body(body: Mapping[str, Any] | msgspec.Struct) -> bytes:
    """The bytes of a message body: compact UTF-8 JSON in the order given."""
    return msgspec.json.encode(body)


Headers = tuple[tuple[str, bytes | None], ...]
# Bytes are base64 in JSON, for msgspec as for ``encode_headers``.
_stored_headers = msgspec.json.Decoder(Headers)


def encode_headers(headers: Headers) -> bytes:
    """Message headers as ASCII JSON ``[[name, base64 or null], ...]``: any bytes survive the way."""
    return json.dumps(
        [[name, None if value is None else b64encode(value).decode()] for name, value in headers]
    ).encode()


# The name under which stored headers that cannot be read go on, as they are stored.
UNREADABLE_HEADERS = "x-unreadable-headers"


def decode_headers(stored: bytes) -> Headers:
    """What ``encode_headers`` stored; anything else as the one header ``UNREADABLE_HEADERS``.

    So a damaged row is published and shown, and its reader sees what is wrong with it.
    """
    try:
        return _stored_headers.decode(stored)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ((UNREADABLE_HEADERS, stored),)


def cloud_event_headers(
    *, event_id: str, event_type: str, time: str, traceparent: str
) -> list[tuple[str, str | bytes | None]]:
    """The headers of an event in CloudEvents' binary mode (CloudEvents 1.0, Kafka protocol binding 3.2)."""
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_id", event_id),
        ("ce_type", event_type),
        ("ce_source", SOURCE),
        ("ce_specversion", "1.0"),
        ("ce_time", time),
        ("content-type", "application/json"),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers


def new_traceparent() -> str:
    """A new, sampled trace context (W3C Trace Context, version 00)."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


def read_traceparent(text: str) -> str:
    """The trace context in ``text`` as version 00 writes it; empty where it is not valid and a new trace begins.

    By W3C Trace Context, 3.2 and 4: upper case, ids of zeros and version ff are not valid. Of a later version the known
    fields are taken, and of its flags the one that version 00 knows (sampled).
    """
    found = _TRACEPARENT.fullmatch(text)
    if (
        found is None
        or found["version"] == "ff"
        or not found["trace_id"].strip("0")
        or not found["parent_id"].strip("0")
    ):
        return ""
    if found["version"] == "00":
        return "" if found["later_fields"] else text
    return f"00-{found['trace_id']}-{found['parent_id']}-{int(found['flags'], 16) & 1:02x}"


# A batch has one time of processing, and rows of one transaction one time of creation.
@lru_cache(maxsize=16)
def isoformat_z(moment: datetime) -> str:
    """ISO 8601 in UTC with ``Z``; ``moment`` must be aware."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
