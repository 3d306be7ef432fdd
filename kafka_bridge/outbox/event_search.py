"""Find an event of the outbox by when it was written and by a part of its body.

The ids of events are UUIDv7, so their unique index is ordered by the clocks of the processes that made them. No other
index leads from a request to the event of its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection

# A batch of results is written within a second. Twice as many rows as the fastest sale writes in that time are read.
_MOST_ROWS = 20_000
_CLOCKS_DIFFER = timedelta(milliseconds=50)
_WINDOW = timedelta(seconds=60)

# The subquery ends at the first row that matches: rows are read in the order of the index, and no more than needed.
_FIND = """
    SELECT event_id FROM (
        SELECT event_id, event_type, payload, headers FROM kafka_bridge_outboxmessage
        WHERE event_id >= %(first)s::uuid AND event_id < %(last)s::uuid ORDER BY event_id {order} LIMIT %(most)s
    ) AS near
    WHERE event_type = ANY(%(types)s) AND headers IS NULL AND position(%(part)s::bytea IN payload) > 0
    LIMIT 1
"""
_FORWARD = _FIND.format(order="")
_BACKWARD = _FIND.format(order="DESC")


def event_written_at(moment: datetime, *, event_types: Sequence[str], part: bytes) -> UUID | None:
    """Return the id of an event with ``part`` in its body, made shortly after ``moment``, else shortly before it.

    None if it is not among the 20,000 rows before and after: it was pruned, or the clock of its process was wrong.
    """
    start = moment - _CLOCKS_DIFFER
    for query, first, last in ((_FORWARD, start, start + _WINDOW), (_BACKWARD, start - _WINDOW, start)):
        values: dict[str, str | int | list[str] | bytes] = {
            "first": str(_least_id(first)),
            "last": str(_least_id(last)),
            "most": _MOST_ROWS,
            "types": list(event_types),
            "part": part,
        }
        with connection.cursor() as cursor:
            cursor.execute(query, values)
            if row := cursor.fetchone():
                return UUID(str(row[0]))
    return None


def made_at(event_id: UUID) -> float | None:
    """Return when a UUIDv7 was made, in seconds since 1970; None for an id of another version, which has no time."""
    return (event_id.int >> 80) / 1000 if event_id.version == 7 else None


def _least_id(moment: datetime) -> UUID:
    """Return an id below every UUIDv7 that is made at ``moment`` or later."""
    return UUID(int=max(0, round(moment.timestamp() * 1000)) << 80)
