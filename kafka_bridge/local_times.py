"""Times without a zone, as Java writes a LocalDateTime: read in ``BUSINESS_TIME_ZONE``."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo

from django.conf import settings

_TEXT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?(?:\.(\d{1,9}))?")
_NANOSECONDS_PER_MICROSECOND = 1000
_BILLION = 10**9


def local_time(value: object) -> datetime | None:
    """Return the time of a LocalDateTime as Jackson writes it; None for a value of another shape.

    Either text without a zone, with or without seconds and up to 9 digits of a fraction, or an array of year, month,
    day, hour, minute and, optionally, second and nanosecond. Raises ValueError for a day or hour that does not exist.
    """
    zone = ZoneInfo(settings.BUSINESS_TIME_ZONE)
    if isinstance(value, str):
        if not (match := _TEXT.fullmatch(value)):
            return None
        to_the_minute, seconds, fraction = match.groups()
        if fraction and not seconds:
            return None
        return datetime.fromisoformat(f"{to_the_minute}{seconds or ':00'}.{fraction or '0':0<6.6}").replace(tzinfo=zone)
    if isinstance(value, list) and 5 <= len(value) <= 7 and all(_is_part(part) for part in value):
        year, month, day, hour, minute, second, nanosecond = [*value, 0, 0][:7]
        microsecond = nanosecond // _NANOSECONDS_PER_MICROSECOND
        return datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
    return None


def _is_part(value: object) -> bool:
    return type(value) is int and 0 <= value < _BILLION
