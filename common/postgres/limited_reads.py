"""Reads that must not last: of alarms and of pages for operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import connection, transaction

READ_SECONDS = 5.0


def limited_read(sql: str, values: Mapping[str, Any] | Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Return the rows of a query that may take ``READ_SECONDS``, waits for locks included.

    Raises what the database raises, also when the time is over.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {round(READ_SECONDS * 1000)}")
        cursor.execute(sql, values)
        return list(cursor.fetchall())
