"""Events that something else than Kafka carries to their consumers.

Their outbox rows are the truth all the same: a transport passes on event ids, and who gets one reads the row. Such a row
names its transport where others name their topic, and counts as published from the start: the relay never sees it,
nobody counts it as waiting, and pruning keeps it as long as any other row that is waited for.
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

# In UTC as text, as the relay reads it: the header is the same.
_READ = """
    SELECT id, event_id, event_type, key, payload, traceparent, (created_at AT TIME ZONE 'UTC')::text
    FROM kafka_bridge_outboxmessage WHERE event_id = ANY(%s::uuid[]) AND topic = %s
"""


def row_for_transport(row: OutboxRow, transport: str) -> OutboxRow:
    """``row``, to be carried by ``transport`` (a name that is no topic) instead of Kafka."""
    return row._replace(topic=transport, by_transport=True)


def messages_of_transport(transport: str, event_ids: Collection[UUID]) -> dict[UUID, ReceivedMessage]:
    """The messages by event id, as from the topic of their route; ids that ``transport`` has no row of are left out.

    Their partition is -1 and their offset the row's id, which no message of Kafka has.
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
