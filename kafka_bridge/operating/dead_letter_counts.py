"""How many dead letters are open, by consumer group and error class."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from common.postgres.limited_reads import limited_read

from ..open_letters import MOST_COUNTED, open_letters_sql

_MOST_KINDS = 50

_COUNT = f"""
    SELECT consumer_group, error_class, count(*), min(created_at), max(created_at), sum(count(*)) OVER ()
    FROM ({open_letters_sql("%(most)s")}) AS newest
    GROUP BY consumer_group, error_class ORDER BY count(*) DESC, consumer_group, error_class
    LIMIT {_MOST_KINDS}
"""


class DeadLetterCount(NamedTuple):
    """The open dead letters of a consumer group with an error class."""

    consumer_group: str
    error_class: str
    number: int
    oldest_at: datetime
    newest_at: datetime


class OpenDeadLetters(NamedTuple):
    """``total`` is the number that was counted; ``is_more``: there are older ones, which were not counted."""

    counts: list[DeadLetterCount]
    total: int
    is_more: bool


def open_dead_letters(at_least: int = MOST_COUNTED) -> OpenDeadLetters:
    """Count the newest open dead letters, ``MOST_COUNTED`` or ``at_least`` so many; one query on a partial index.

    Raises what the database raises, also when the read takes too long.
    """
    most = max(MOST_COUNTED, at_least)
    rows = limited_read(_COUNT, {"most": most + 1})
    total = int(rows[0][-1]) if rows else 0
    return OpenDeadLetters([DeadLetterCount(*row[:-1]) for row in rows], min(total, most), is_more=total > most)
