"""How many dead letters are open, by consumer group and error class."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from django.db import connection

from ..models import DeadLetter

# Of more open ones the newest are looked at: their number is bounded only by what was sent.
MOST_COUNTED = 10_000
_MOST_KINDS = 50

_COUNT = f"""
    SELECT consumer_group, error_class, count(*), min(created_at), max(created_at), sum(count(*)) OVER ()
    FROM (
        SELECT consumer_group, error_class, created_at FROM {DeadLetter._meta.db_table}
        WHERE closed_at IS NULL ORDER BY id DESC LIMIT {MOST_COUNTED + 1}
    ) AS newest
    GROUP BY consumer_group, error_class ORDER BY count(*) DESC, consumer_group, error_class LIMIT {_MOST_KINDS}
"""


class DeadLetterCount(NamedTuple):
    """The open dead letters of a consumer group with an error class."""

    consumer_group: str
    error_class: str
    number: int
    oldest_at: datetime
    newest_at: datetime


class OpenDeadLetters(NamedTuple):
    """``total`` is at most ``MOST_COUNTED``; ``is_more``: there are older ones, which were not counted."""

    counts: list[DeadLetterCount]
    total: int
    is_more: bool


def open_dead_letters() -> OpenDeadLetters:
    """Count the open dead letters; one query on a partial index."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT)
        rows = cursor.fetchall()
    total = int(rows[0][-1]) if rows else 0
    return OpenDeadLetters(
        [DeadLetterCount(*row[:-1]) for row in rows], min(total, MOST_COUNTED), is_more=total > MOST_COUNTED
    )
