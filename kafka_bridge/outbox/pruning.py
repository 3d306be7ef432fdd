"""Delete published outbox rows past their retention, in small batches."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

from django.db import connection

from common.processes.lifecycle import StopFlag

from ..registry import retained_ids
from .published import is_passed_sql

logger = logging.getLogger(__name__)

BATCH_SIZE = 1000
_PAUSE = 0.05

# Read by id, not by time: the primary key serves it without another index, and ids rise with time.
_CANDIDATES = """
    SELECT id, CASE WHEN headers IS NULL THEN event_type END, event_id,
           created_at < statement_timestamp() - %s * interval '1 second'
    FROM kafka_bridge_outboxmessage
    WHERE id > %s
    ORDER BY id LIMIT %s
"""
# Only under the position: `sent_through` may be ahead of what a relay still looks for.
_DELETE = f"""
    DELETE FROM kafka_bridge_outboxmessage AS message
    WHERE id = ANY(%s)
      AND NOT EXISTS (SELECT FROM kafka_bridge_heldmessage AS held WHERE held.message_id = message.id)
      AND (published_at IS NOT NULL OR {is_passed_sql("position", "message")})
"""


def prune(retention: timedelta, stop: StopFlag, *, batch_size: int = BATCH_SIZE) -> int:
    """Delete published rows older than ``retention`` and return how many; rows of undecided requests are kept.

    Each batch is its own transaction, followed by a pause of 0.05 s so that the relay and autovacuum keep up.
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
        expired = [(row_id, event_type, event_id) for row_id, event_type, event_id, is_old in rows if is_old]
        if not expired:
            # Ids rise with time: when a whole batch is within the retention, so are all later rows.
            break
        deleted += _delete(expired)
        stop.wait(_PAUSE)
    return deleted


def _delete(expired: list[tuple[int, str | None, UUID]]) -> int:
    by_type: dict[str, list[UUID]] = defaultdict(list)
    for _, event_type, event_id in expired:
        # A dead letter's copy has the type of its original but its own id: no undecided request needs it.
        if event_type is not None:
            by_type[event_type].append(event_id)
    kept = {event_id for event_type, ids in by_type.items() for event_id in retained_ids(event_type, ids)}
    if kept:
        logger.warning("%d rows past retention are kept: their requests are undecided", len(kept))
    with connection.cursor() as cursor:
        cursor.execute(_DELETE, [[row_id for row_id, _, event_id in expired if event_id not in kept]])
        return int(cursor.rowcount)
