"""Delete published outbox rows past their retention, in small batches."""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

from django.db import connection, transaction

from common.postgres.lock_limits import limit_lock_waits
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


class OutboxPruner:
    """Prunes in turns: a turn that was cut off is continued by the next, past old rows that must be kept."""

    def __init__(self) -> None:
        self._last_id = 0

    def prune(self, retention: timedelta, stop: StopFlag) -> int:
        """Go on where the last turn was cut off, at the start after a whole pass; returns the rows deleted."""
        deleted, self._last_id = _prune(retention, stop, after=self._last_id, batch_size=BATCH_SIZE)
        return deleted


def prune(retention: timedelta, stop: StopFlag, *, batch_size: int = BATCH_SIZE) -> int:
    """Delete published rows older than ``retention`` and return how many; rows of undecided requests are kept.

    Each batch is its own transaction, followed by a pause of 0.05 s so that the relay and autovacuum keep up. A wait
    for the lock of another session ends after two seconds with an error that is transient.
    """
    deleted, _ = _prune(retention, stop, after=0, batch_size=batch_size)
    return deleted


def _prune(retention: timedelta, stop: StopFlag, *, after: int, batch_size: int) -> tuple[int, int]:
    """Return the rows deleted, and the id after which a later call goes on; 0 if this one came to the end."""
    deleted, last_id = 0, after
    while not stop:
        with transaction.atomic():
            limit_lock_waits()
            with connection.cursor() as cursor:
                cursor.execute(_CANDIDATES, [retention.total_seconds(), last_id, batch_size])
                rows = cursor.fetchall()
            expired = [(row_id, event_type, event_id) for row_id, event_type, event_id, is_old in rows if is_old]
            # Ids rise with time: when a whole batch is within the retention, so are all later rows.
            if not expired:
                return deleted, 0
            deleted += _delete(expired)
        last_id = rows[-1][0]
        stop.wait(_PAUSE)
    return deleted, last_id


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
