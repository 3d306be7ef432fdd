"""Held rows of the outbox: their topics, and rows that are to be sent again. The relay of their shard sends them."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from django.db import connection

from common.postgres import arrays
from common.postgres.distinct import distinct_sql

from ..models import HeldMessage
from .published import is_published_sql

# The topics of held rows: there may be a million rows of one topic.
HELD_TOPICS = distinct_sql("kafka_bridge_heldmessage", "topic")
_SEND_AGAIN = f"""
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason)
    SELECT id, shard, topic, 'again' FROM kafka_bridge_outboxmessage AS message
    WHERE event_id = ANY(%s::uuid[]) AND {is_published_sql("message")}
    ON CONFLICT DO NOTHING
"""


def holds_anything() -> bool:
    """Return whether rows are held: for their topic, for their key, or to be sent again."""
    return HeldMessage.objects.exists()


def send_again(event_ids: Collection[UUID]) -> None:
    """Have the published rows of these events sent once more, under their ids, within a second or two."""
    with connection.cursor() as cursor:
        cursor.execute(_SEND_AGAIN, [arrays.uuids(event_ids)])
