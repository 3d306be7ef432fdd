"""Deleting published outbox rows past their retention, a little at a time."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

from django.db import connection

from common.processes.lifecycle import StopFlag

from ..registry import retained_ids

logger = logging.getLogger(__name__)

BATCH_SIZE = 1000
_PAUSE = 0.05

# By id rather than by time: the primary key is there anyway, and ids rise with time.
_CANDIDATES = """
    SELECT id, CASE WHEN headers IS NULL THEN event_type END, event_id,
           coalesce(published_at < line.at, false), created_at < line.at
    FROM kafka_bridge_outboxmessage, (SELECT statement_timestamp() - %s * interval '1 second' AS at) AS line
    WHERE id > %s
    ORDER BY id LIMIT %s
"""
_DELETE = "DELETE FROM kafka_bridge_outboxmessage WHERE id = ANY(%s) AND published_at IS NOT NULL"


def prune(retention: timedelta, stop: StopFlag, *, batch_size: int = BATCH_SIZE) -> int:
    """Delete published rows older than ``retention``, but none that is still waited for; returns how many.

    Each batch is a transaction of its own with a pause behind it, so that the relay and autovacuum keep up.
    """
    deleted = 0
    last_id = 0
    while not stop:
        with connection.cursor() as cursor:
            cursor.execute(_CANDIDATES, [retention.total_seconds(), last_id, batch_size])
            rows = cursor.fetchall()
        if not rows:
            break
        last_id = rows[-1][0]
        if not any(old for *_, old in rows):
            # Ids rise with time: a whole batch within the retention means that the rest is too.
            break
        expired = [(row_id, event_type, event_id) for row_id, event_type, event_id, past, _ in rows if past]
        if expired:
            deleted += _delete(expired)
            stop.wait(_PAUSE)
    return deleted


def _delete(expired: list[tuple[int, str | None, UUID]]) -> int:
    by_type: dict[str, list[UUID]] = defaultdict(list)
    for _, event_type, event_id in expired:
        # A dead letter's copy has its original's type and an id of its own: nothing waits for it.
        if event_type is not None:
            by_type[event_type].append(event_id)
    kept = {event_id for event_type, ids in by_type.items() for event_id in retained_ids(event_type, ids)}
    if kept:
        logger.warning("%d rows past retention are kept: nobody has decided them yet", len(kept))
    with connection.cursor() as cursor:
        cursor.execute(_DELETE, [[row_id for row_id, _, event_id in expired if event_id not in kept]])
        return int(cursor.rowcount)
