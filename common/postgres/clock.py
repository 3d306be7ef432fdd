"""The database's clock: the one clock that all processes share."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from django.db import connection


def database_time() -> datetime:
    """Return the database's time, aware, in UTC."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        (now,) = cursor.fetchone() or (None,)
    assert isinstance(now, datetime)
    return now


def isoformat_z(moment: datetime) -> str:
    """Format ``moment`` (aware) as ISO 8601 in UTC with ``Z``."""
    # A fifth of the time of datetime's own methods, which counts once per request of a batch.
    text: str = msgspec.to_builtins(moment if moment.tzinfo is UTC else moment.astimezone(UTC))
    return text
