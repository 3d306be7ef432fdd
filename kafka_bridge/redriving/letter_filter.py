"""Which open dead letters a redrive takes, and the freezing of that set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from common.postgres.clock import isoformat_z

from ..errors import BridgeError
from ..models import DeadLetter, RedriveItem

# Of more letters the operator makes several redrives.
MOST_LETTERS = 100_000
# Letters of one statement: the web process limits the time of a statement.
CHUNK = 10_000
_MOST_CLASSES = 50

_LETTERS = DeadLetter._meta.db_table
_ITEMS = RedriveItem._meta.db_table

_INSERT = f"""
    WITH frozen AS (
        INSERT INTO {_ITEMS} (redrive_id, letter_id)
        SELECT %(redrive)s, id FROM {_LETTERS}
        WHERE closed_at IS NULL AND id > %(last)s AND {{conditions}}
        ORDER BY id LIMIT %(chunk)s
        RETURNING letter_id
    )
    SELECT count(*), max(letter_id) FROM frozen
"""
_HISTOGRAM = f"""
    SELECT letter.error_class, count(*) FROM {_ITEMS} AS item JOIN {_LETTERS} AS letter ON letter.id = item.letter_id
    WHERE item.redrive_id = %s GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_CLASSES}
"""


class TooManyLetters(BridgeError):
    """A set has more than ``MOST_LETTERS`` letters."""


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Open dead letters that match every value given; empty and None match all.

    ``topic`` is without the prefix, ``error`` an error class. Created from ``since`` (included) to ``until``.
    """

    topic: str = ""
    group: str = ""
    error: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the values given, as JSON can hold them."""
        values = {
            "topic": self.topic,
            "group": self.group,
            "error": self.error,
            "since": self.since and isoformat_z(self.since),
            "until": self.until and isoformat_z(self.until),
        }
        return {name: value for name, value in values.items() if value}

    def conditions(self) -> tuple[str, dict[str, Any]]:
        """Return the SQL conditions, and their values by name."""
        columns = {
            "topic": (self.topic, "topic = %(topic)s"),
            "group": (self.group, "consumer_group = %(group)s"),
            "error": (self.error, "error_class = %(error)s"),
            "since": (self.since, "created_at >= %(since)s"),
            "until": (self.until, "created_at < %(until)s"),
        }
        given = {name: column for name, column in columns.items() if column[0]}
        conditions = " AND ".join(condition for _, condition in given.values())
        return conditions or "true", {name: value for name, (value, _) in given.items()}


def freeze_matching(redrive_id: int, letters: LetterFilter) -> int:
    """Insert the items of all open letters that match, within the caller's transaction; returns their number.

    Raises TooManyLetters.
    """
    conditions, values = letters.conditions()
    return _freeze(redrive_id, conditions, values)


def freeze_selected(redrive_id: int, letter_ids: Sequence[int]) -> int:
    """Insert the items of the open letters among ``letter_ids``, like ``freeze_matching``."""
    return _freeze(redrive_id, "id = ANY(%(ids)s)", {"ids": list(letter_ids)})


def _freeze(redrive_id: int, conditions: str, values: dict[str, Any]) -> int:
    total: int = 0
    last: int | None = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(
                _INSERT.format(conditions=conditions), {**values, "redrive": redrive_id, "last": last, "chunk": CHUNK}
            )
            row = cursor.fetchone()
            assert row is not None
            count: int = row[0]
            last = row[1]
            total += count
            if total > MOST_LETTERS:
                raise TooManyLetters(f"more than {MOST_LETTERS} open dead letters match: narrow the filter")
            if count < CHUNK:
                return total


def error_classes(redrive_id: int) -> list[list[Any]]:
    """Return ``[[error class, letters], ...]`` of a redrive's letters, most letters first."""
    with connection.cursor() as cursor:
        cursor.execute(_HISTOGRAM, [redrive_id])
        return [list(row) for row in cursor.fetchall()]
