"""The rows that a relay has passed unsent, and what waits behind them.

A row is held because its topic accepts no messages, because an operator holds its topic or key, or to be sent again.
Later rows of such a topic or key are held too, until the earlier ones are sent. Rows to be sent again hold nothing
back. Only the relay that holds the shard enters and sends held rows; others ask for rows to be sent again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from django.db import connection

from common.postgres import arrays

from ..models import HeldMessage
from ..outbox.holds import HELD_TOPICS
from .publisher import COLUMNS, OutboxRecord

_TOPIC, _KEY = HeldMessage.Reason.TOPIC, HeldMessage.Reason.KEY

_ENTER = """
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason, last_error)
    SELECT * FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT (message_id) DO UPDATE SET reason = EXCLUDED.reason, last_error = EXCLUDED.last_error
"""
_BLOCKS_TOPIC = """
    SELECT EXISTS (
        SELECT FROM kafka_bridge_heldmessage WHERE topic = %s AND reason = 'topic' AND shard = ANY(%s::int[])
    )
"""
_BLOCKED_KEYS = """
    SELECT DISTINCT message.topic, message.key
    FROM kafka_bridge_heldmessage AS held JOIN kafka_bridge_outboxmessage AS message ON message.id = held.message_id
    WHERE held.reason = 'key' AND held.shard = ANY(%s::int[])
"""
_HOLDS = "SELECT topic, key, reason FROM kafka_bridge_outboxhold"
# Rows of a topic that wait for their key only, so that the topic can go on.
_WAIT_FOR_KEY = """
    UPDATE kafka_bridge_heldmessage AS held SET reason = 'key'
    FROM kafka_bridge_outboxmessage AS message
    WHERE message.id = held.message_id AND held.topic = %s AND held.reason = 'topic' AND held.shard = ANY(%s::int[])
      AND message.key = ANY(%s::bytea[])
"""
# A held row without its message is to be freed: it was deleted, or published by a relay of the version before.
_READ = f"""
    SELECT message_id, {", ".join(COLUMNS)} FROM (
        SELECT held.message_id, message.*, coalesce(octet_length(message.payload), 0) AS size,
               sum(coalesce(octet_length(message.payload), 0)) OVER so_far AS total
        FROM (
            SELECT message_id, reason FROM kafka_bridge_heldmessage AS held
            WHERE topic = %(topic)s AND shard = ANY(%(shards)s::int[]) AND NOT EXISTS (
                SELECT FROM kafka_bridge_outboxmessage AS message
                WHERE message.id = held.message_id AND message.key = ANY(%(keys)s::bytea[])
            )
            ORDER BY message_id LIMIT %(limit)s
        ) AS held LEFT JOIN kafka_bridge_outboxmessage AS message
            ON message.id = held.message_id AND message.topic = %(topic)s
            AND (message.published_at IS NULL OR held.reason = 'again')
        WINDOW so_far AS (ORDER BY held.message_id ROWS UNBOUNDED PRECEDING)
    ) AS read
    WHERE total - size < %(bytes)s
    ORDER BY message_id
"""
# A row whose topic was changed by SQL stays held, under its new topic.
_FOLLOW_TOPIC = """
    UPDATE kafka_bridge_heldmessage AS held SET topic = message.topic
    FROM kafka_bridge_outboxmessage AS message
    WHERE message.id = held.message_id AND held.message_id = ANY(%s::bigint[]) AND held.topic <> message.topic
    RETURNING held.message_id
"""
_REMOVE = "DELETE FROM kafka_bridge_heldmessage WHERE message_id = ANY(%s::bigint[])"
_NOTE_ATTEMPT = """
    UPDATE kafka_bridge_heldmessage SET attempts = attempts + 1, last_error = %s
    WHERE message_id = (
        SELECT message_id FROM kafka_bridge_heldmessage
        WHERE topic = %s AND shard = ANY(%s::int[]) ORDER BY message_id LIMIT 1
    )
"""


# A row, why it is held, and the error.
HeldRow = tuple[OutboxRecord, str, str]


class HeldMessages:
    """The held rows of the shards of one relay, and the holds of operators."""

    def __init__(self) -> None:
        # Topics and keys with rows that were never sent: later rows join them.
        self.blocked_topics: set[str] = set()
        self._blocked_keys: set[tuple[str, bytes]] = set()
        self.held_topics: dict[str, str] = {}
        self._held_keys: set[tuple[str, bytes]] = set()
        self._shards = arrays.numbers([])

    def load(self, shards: Sequence[int]) -> list[str]:
        """Read what is held in ``shards`` and by operators; return the topics of held rows of any shard."""
        self._shards = arrays.numbers(shards)
        with connection.cursor() as cursor:
            cursor.execute(_HOLDS)
            holds = cursor.fetchall()
            self.held_topics = {topic: reason for topic, key, reason in holds if key is None}
            self._held_keys = {(topic, key) for topic, key, _ in holds if key is not None}
            cursor.execute(HELD_TOPICS)
            topics = [topic for (topic,) in cursor.fetchall()]
            for topic, key in self._held_keys:
                cursor.execute(_WAIT_FOR_KEY, [topic, self._shards, arrays.blobs([key])])
            self.blocked_topics = {topic for topic in topics if self._is_blocked(topic)}
            cursor.execute(_BLOCKED_KEYS, [self._shards])
            self._blocked_keys = {(topic, key) for topic, key in cursor.fetchall() if key is not None}
        return topics

    @property
    def holds_nothing(self) -> bool:
        """Whether no row must wait."""
        return not (self.blocked_topics or self.held_topics or self._blocked_keys or self._held_keys)

    def reason_to_hold(self, row: OutboxRecord) -> str | None:
        """Return why a row that was never sent must wait, None if it need not."""
        if row.topic in self.blocked_topics or row.topic in self.held_topics:
            return _TOPIC
        if self._blocked_keys or self._held_keys:
            key = (row.topic, row.key or b"")
            if key in self._blocked_keys or key in self._held_keys:
                return _KEY
        return None

    def enter(self, entries: Sequence[HeldRow]) -> None:
        """Hold rows within the caller's transaction, which moves the position past them."""
        if not entries:
            return
        with connection.cursor() as cursor:
            cursor.execute(
                _ENTER,
                [
                    arrays.numbers([row.id for row, _, _ in entries]),
                    arrays.numbers([row.shard for row, _, _ in entries]),
                    arrays.texts([row.topic for row, _, _ in entries]),
                    arrays.texts([str(reason) for _, reason, _ in entries]),
                    arrays.texts([error for _, _, error in entries]),
                ],
            )
        self.blocked_topics.update(row.topic for row, reason, _ in entries if reason == _TOPIC)
        self._blocked_keys.update((row.topic, row.key or b"") for row, reason, _ in entries if reason == _KEY)

    def read(self, topic: str, *, limit: int, max_bytes: int) -> list[OutboxRecord]:
        """Return the first held rows of ``topic`` that may be sent, in id order; rows that need no sending are freed.

        At most ``limit`` rows, and of ``max_bytes`` payload unless the first alone is larger.
        """
        keys = arrays.blobs([key for held_topic, key in self._held_keys if held_topic == topic])
        values: dict[str, Any] = {
            "topic": topic,
            "shards": self._shards,
            "keys": keys,
            "limit": limit,
            "bytes": max_bytes,
        }
        with connection.cursor() as cursor:
            cursor.execute(_READ, values)
            found = cursor.fetchall()
            if gone := {row[0] for row in found if row[1] is None}:
                cursor.execute(_FOLLOW_TOPIC, [arrays.numbers(gone)])
                gone -= {row_id for (row_id,) in cursor.fetchall()}
        self.remove(gone)
        return [OutboxRecord(*row[1:]) for row in found if row[1] is not None]

    def remove(self, ids: Collection[int]) -> None:
        """Free rows: they are sent."""
        if ids:
            with connection.cursor() as cursor:
                cursor.execute(_REMOVE, [arrays.numbers(ids)])

    def note_attempt(self, topic: str, error: str) -> None:
        """Count an attempt to send the first held row of ``topic``, which failed with ``error``."""
        with connection.cursor() as cursor:
            cursor.execute(_NOTE_ATTEMPT, [error, topic, self._shards])

    def _is_blocked(self, topic: str) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(_BLOCKS_TOPIC, [topic, self._shards])
            (found,) = cursor.fetchone() or (False,)
        return bool(found)
