"""Business days: from midnight to midnight in BUSINESS_TIME_ZONE."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings

from common.postgres.clock import database_time


def day_of(moment: datetime) -> date:
    """Return the business day of ``moment``, which must be aware. Raises OverflowError near years 1 and 9999."""
    return moment.astimezone(ZoneInfo(settings.BUSINESS_TIME_ZONE)).date()


def start_of(day: date) -> datetime:
    """Return the time at which ``day`` begins, aware."""
    return datetime.combine(day, time.min, ZoneInfo(settings.BUSINESS_TIME_ZONE))


def last_days(count: int) -> list[date]:
    """Return the last ``count`` days, oldest first, today included; today by the database's clock."""
    today = day_of(database_time())
    return [today - timedelta(days=back) for back in reversed(range(count))]
