"""The held rows of the outbox by topic and by key, as operators see them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from django.db import connection

from .holds import HELD_TOPICS

# More rows of a topic are not counted.
MOST_COUNTED = 10_000
_LIMIT = str(MOST_COUNTED + 1)
_MOST_KEYS = 100

_BY_TOPIC = f"""
    SELECT held_topic.topic, counted.* FROM ({HELD_TOPICS}) AS held_topic CROSS JOIN LATERAL (
        SELECT reason, least(count(*), {MOST_COUNTED}), count(*) > {MOST_COUNTED}, min(created_at), max(attempts),
               coalesce((array_agg(last_error ORDER BY message_id) FILTER (WHERE last_error <> ''))[1], '')
        FROM (
            SELECT * FROM kafka_bridge_heldmessage WHERE topic = held_topic.topic ORDER BY message_id LIMIT {_LIMIT}
        ) AS first_of_topic
        GROUP BY reason
    ) AS counted
    ORDER BY 1, 2
"""
_BY_KEY = f"""
    SELECT held.topic, message.key, least(count(*), {MOST_COUNTED}), count(*) > {MOST_COUNTED}, min(held.created_at)
    FROM (
        SELECT message_id, topic, created_at FROM kafka_bridge_heldmessage
        WHERE reason = 'key' ORDER BY message_id LIMIT {_LIMIT}
    ) AS held CROSS JOIN LATERAL (
        SELECT key FROM kafka_bridge_outboxmessage WHERE id = held.message_id LIMIT 1
    ) AS message
    GROUP BY held.topic, message.key ORDER BY min(held.message_id) LIMIT {_MOST_KEYS}
"""


class HeldOfTopic(NamedTuple):
    """The rows of a topic that are held for the same reason (``HeldMessage.Reason``).

    ``is_more``: there may be more than ``number``. ``attempts`` and ``last_error`` are of the first row, which is tried
    for all of the topic; the error is empty if there was no attempt.
    """

    topic: str
    reason: str
    number: int
    is_more: bool
    since: datetime
    attempts: int
    last_error: str


class HeldOfKey(NamedTuple):
    """The rows of a key that wait for it; ``is_more``: there may be more than ``number``."""

    topic: str
    key: bytes
    number: int
    is_more: bool
    since: datetime


def held_by_topic() -> list[HeldOfTopic]:
    """Return the held rows by topic and reason; at most ``MOST_COUNTED`` of each topic are counted."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_TOPIC)
        return [HeldOfTopic(*row) for row in cursor.fetchall()]


def held_by_key() -> list[HeldOfKey]:
    """Return the keys with rows held for them, the first to wait first, at most 100 of the first 10,000 such rows."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_KEY)
        return [HeldOfKey(topic, bytes(key or b""), *rest) for topic, key, *rest in cursor.fetchall()]
