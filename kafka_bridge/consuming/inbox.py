"""The inbox: the events whose effect a consumer group has applied."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from django.db import connection

from common.postgres import arrays

from ..models import ProcessedEvent

# Sorted by id: two consumers that claim the same events in different orders would deadlock.
_CLAIM = """
    INSERT INTO kafka_bridge_processedevent (consumer_group, event_id)
    SELECT %s, event_id FROM unnest(%s::uuid[]) AS row (event_id) ORDER BY event_id
    ON CONFLICT DO NOTHING
    RETURNING event_id
"""


def claim(group_name: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Record within the caller's transaction that the group handles these events; returns the new ones.

    Waits for a concurrent transaction that has claimed one of them.
    """
    if not event_ids:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, [group_name, arrays.uuids(event_ids)])
        return {event_id for (event_id,) in cursor.fetchall()}


def handled(group_name: str, event_ids: Collection[UUID]) -> set[UUID]:
    """Return those of ``event_ids`` that the group has handled."""
    rows = ProcessedEvent.objects.filter(consumer_group=group_name, event_id__in=event_ids)
    return set(rows.values_list("event_id", flat=True))
