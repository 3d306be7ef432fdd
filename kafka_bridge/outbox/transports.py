"""Events that reach their consumers by another transport than Kafka.

The outbox row stays the source of truth: the transport delivers event ids, and the consumer reads the row by id. Such
a row has the name of its transport in the topic column and counts as published from the start. So the relay never
reads it, it does not count as unpublished, and pruning keeps it while its request is undecided, like any other row.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from django.conf import settings
from django.db import connection

from common.postgres import arrays

from ..cloudevents import Headers, cloud_event_headers
from ..registry import ReceivedMessage
from .writing import OutboxRow

# The time in UTC as text, as the relay reads it, so that the ce_time header is the same.
_READ = """
    SELECT id, event_id, event_type, key, payload, traceparent, (created_at AT TIME ZONE 'UTC')::text
    FROM kafka_bridge_outboxmessage WHERE event_id = ANY(%s::uuid[]) AND topic = %s
"""


def row_for_transport(row: OutboxRow, transport: str) -> OutboxRow:
    """Return ``row`` for ``transport`` (a name that is not a topic) instead of Kafka."""
    return row._replace(topic=transport, by_transport=True)


def messages_of_transport(transport: str, event_ids: Collection[UUID]) -> dict[UUID, ReceivedMessage]:
    """Return messages by event id, built from the outbox rows as if read from the topic of their route.

    Ids without a row of ``transport`` are left out. A message's partition is -1, which no Kafka message has; its offset
    is the id of its row.
    """
    with connection.cursor() as cursor:
        cursor.execute(_READ, [arrays.uuids(event_ids), transport])
        return {row[1]: _message(*row) for row in cursor.fetchall()}


def _message(
    row_id: int,
    event_id: UUID,
    event_type: str,
    key: bytes | None,
    payload: bytes | None,
    traceparent: str,
    created_at: str,
) -> ReceivedMessage:
    time = f"{created_at.replace(' ', 'T')}Z"
    headers = cloud_event_headers(event_id=str(event_id), event_type=event_type, time=time, traceparent=traceparent)
    return ReceivedMessage(
        topic=settings.KAFKA_ROUTES[event_type].topic,
        partition=-1,
        offset=row_id,
        timestamp=0,
        key=None if key is None else bytes(key),
        value=None if payload is None else bytes(payload),
        headers=_encoded(headers),
    )


def _encoded(headers: list[tuple[str, str | bytes | None]]) -> Headers:
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in headers)
