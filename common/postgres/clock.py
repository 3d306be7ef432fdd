"""The database's clock, which all processes share."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from django.db import connection


def database_time() -> datetime:
    """The time at the database, aware, UTC."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (now,) = cursor.fetchone() or (None,)
    assert isinstance(now, datetime)
    return now


# A batch has one time of processing, and rows of one transaction one time of creation.
@lru_cache(maxsize=16)
def isoformat_z(moment: datetime) -> str:
    """ISO 8601 in UTC with ``Z``; ``moment`` must be aware."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
