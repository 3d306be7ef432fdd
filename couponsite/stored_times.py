"""Convert stored times outside Python's range to the nearest supported time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg2.extensions import (
    PYDATETIMETZ,
    new_array_type,
    new_type,
    register_type,
)

# A year of margin on both sides for other time zones and for arithmetic.
_FIRST = datetime(2, 1, 1, tzinfo=UTC)
_LAST = datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
_FIRST_YEAR, _YEAR_AFTER = "0002", "9999"
_TIMESTAMPTZ, _TIMESTAMPTZ_ARRAY = 1184, 1185


def _read(text: str | None, cursor: Any) -> Any:
    """Parse a time in PostgreSQL's ISO format; times outside the years 2 to 9998 become the nearest within them."""
    if text is None:
        return None
    if _FIRST_YEAR <= text[:4] < _YEAR_AFTER and text[4] == "-" and not text.endswith("BC"):
        return PYDATETIMETZ(text, cursor)
    # 10000-01-01 00:00:00+00, infinity; 0044-03-15 00:00:00+00 BC, -infinity.
    return _FIRST if text.startswith(("-", "0000", "0001")) or text.endswith("BC") else _LAST


_TIME = new_type((_TIMESTAMPTZ,), "NEAREST_TIMESTAMPTZ", _read)
_TIMES = new_array_type((_TIMESTAMPTZ_ARRAY,), "NEAREST_TIMESTAMPTZ_ARRAY", _TIME)


def read_nearest_times(connection: BaseDatabaseWrapper, **_signal: Any) -> None:
    """Receiver of ``connection_created``: keep a row with an out-of-range time from failing its whole query.

    PostgreSQL stores times from 4713 BC to 294276, and infinity; for most times outside Python's range the driver
    raises, which fails the query that read the row.
    """
    register_type(_TIME, connection.connection)
    register_type(_TIMES, connection.connection)
