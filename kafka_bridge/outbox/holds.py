"""Held rows of the outbox: their topics, and rows that are to be sent again. The relay of their shard sends them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from common.postgres import arrays
from common.postgres.distinct import distinct_sql

from ..models import HeldMessage
from ..routes import Route
from .addresses import present_address
from .published import is_published_sql

logger = logging.getLogger(__name__)

# The topics of held rows: there may be a million rows of one topic.
HELD_TOPICS = distinct_sql("kafka_bridge_heldmessage", "topic")
_SEND_AGAIN = f"""
    INSERT INTO kafka_bridge_heldmessage (message_id, shard, topic, reason)
    SELECT id, shard, topic, 'again' FROM kafka_bridge_outboxmessage AS message
    WHERE event_id = ANY(%s::uuid[]) AND {is_published_sql("message")}
    ON CONFLICT DO NOTHING
"""

# Published events that an earlier route sent elsewhere than the present one of their type.
_READ_MOVED = f"""
    SELECT message.id, message.event_type, message.topic, message.key, coalesce(message.payload, '')
    FROM kafka_bridge_outboxmessage AS message
    JOIN unnest(%s::text[], %s::text[]) AS route (event_type, topic) ON route.event_type = message.event_type
    WHERE message.event_id = ANY(%s::uuid[]) AND message.headers IS NULL AND message.topic <> route.topic
      AND {is_published_sql("message")}
    ORDER BY message.id FOR NO KEY UPDATE OF message
"""
# The shard stays: its relay's position says that the row is published.
_MOVE = """
    UPDATE kafka_bridge_outboxmessage AS message SET topic = moved.topic, key = moved.key
    FROM unnest(%s::bigint[], %s::text[], %s::bytea[]) AS moved (id, topic, key) WHERE message.id = moved.id
"""


def holds_anything() -> bool:
    """Return whether rows are held: for their topic, for their key, or to be sent again."""
    return HeldMessage.objects.exists()


def send_again(event_ids: Collection[UUID]) -> None:
    """Have the published rows of these events sent once more, under their ids, within a second or two.

    An event whose type has another topic since it was published is sent to that one: nothing reads the earlier one.
    """
    with transaction.atomic():
        _move(event_ids)
        with connection.cursor() as cursor:
            cursor.execute(_SEND_AGAIN, [arrays.uuids(event_ids)])


def _move(event_ids: Collection[UUID]) -> None:
    """Give published events that earlier routes sent elsewhere the topic and key of the present ones."""
    routes: dict[str, Route] = settings.KAFKA_ROUTES
    targets = [arrays.texts(list(routes)), arrays.texts([route.topic for route in routes.values()])]
    with connection.cursor() as cursor:
        cursor.execute(_READ_MOVED, [*targets, arrays.uuids(event_ids)])
        rows = cursor.fetchall()
        if not rows:
            return
        moved = [
            (row_id, topic, present_address(event_type, topic, None if key is None else bytes(key), bytes(payload)))
            for row_id, event_type, topic, key, payload in rows
        ]
        cursor.execute(
            _MOVE,
            [
                arrays.numbers([row_id for row_id, _, _ in moved]),
                arrays.texts([address.topic for _, _, address in moved]),
                arrays.blobs([address.key for _, _, address in moved]),
            ],
        )
    for before, after in sorted({(topic, address.topic) for _, topic, address in moved}):
        number = sum(topic == before and address.topic == after for _, topic, address in moved)
        logger.warning(
            "%d published events move from topic %s to %s, which KAFKA_ROUTES names for their type now",
            number, before, after,
        )  # fmt: skip
