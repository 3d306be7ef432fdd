"""The database's clock: the one clock that all processes share."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from django.db import connection


def database_time() -> datetime:
    """Return the database's time, aware, in UTC."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (now,) = cursor.fetchone() or (None,)
    assert isinstance(now, datetime)
    return now


# Cached, since all rows of a batch or transaction have the same time.
@lru_cache(maxsize=16)
def isoformat_z(moment: datetime) -> str:
    """Format ``moment`` (aware) as ISO 8601 in UTC with ``Z``."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
