"""What waits in the outbox: how many rows, since when, and which are held."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from django.db import connection

from ..models import HeldMessage
from .published import first_rows_sql, first_rows_waiting_sql

# A longer backlog is not counted to its end.
MOST_COUNTED = 10_000
_LIMIT = str(MOST_COUNTED + 1)

_WAITING = f"""
    SELECT count(*), extract(epoch FROM statement_timestamp() - min(created_at))::float,
           (SELECT count(*) FROM {first_rows_sql(_LIMIT)} AS first_rows)
    FROM ({first_rows_waiting_sql(_LIMIT)}) AS waiting
"""
_HELD = f"""
    SELECT topic, reason, count(*), min(created_at), max(last_error)
    FROM (
        SELECT topic, reason, created_at, last_error FROM {HeldMessage._meta.db_table}
        ORDER BY message_id LIMIT {_LIMIT}
    ) AS oldest
    GROUP BY topic, reason ORDER BY topic, reason
"""


class HeldRows(NamedTuple):
    """The rows of a topic that are held for the same reason, see ``HeldMessage.Reason``."""

    topic: str
    reason: str
    number: int
    since: datetime
    last_error: str


class OutboxState(NamedTuple):
    """``waiting``: rows that wait for a relay, the held ones apart. ``oldest_seconds``: None if nothing waits.

    ``is_more``, ``held_is_more``: there may be more, since only the first ``MOST_COUNTED`` rows were looked at.
    """

    waiting: int
    oldest_seconds: float | None
    held: list[HeldRows]
    is_more: bool
    held_is_more: bool

    @property
    def held_count(self) -> int:
        return min(sum(rows.number for rows in self.held), MOST_COUNTED)


def outbox_state() -> OutboxState:
    """Count what waits, looking at ``MOST_COUNTED`` rows of each kind at most; two queries by index."""
    with connection.cursor() as cursor:
        cursor.execute(_WAITING)
        waiting, oldest_seconds, first_rows = cursor.fetchone() or (0, None, 0)
        cursor.execute(_HELD)
        held = [HeldRows(*row) for row in cursor.fetchall()]
    return OutboxState(
        min(waiting, MOST_COUNTED),
        oldest_seconds,
        held,
        is_more=first_rows > MOST_COUNTED,
        held_is_more=sum(rows.number for rows in held) > MOST_COUNTED,
    )
