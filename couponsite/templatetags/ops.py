"""Filters of the pages for operators: how numbers, durations, sizes and times are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

_NOTHING = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = ("B", "kB", "MB", "GB", "TB")


@register.filter
def grouped(value: int | None) -> str:
    """Write a whole number with its thousands apart: ``1,234,567``; None is a dash."""
    return _NOTHING if value is None else f"{value:,}"


@register.filter
def number(value: float | None) -> str:
    """Write a number with at most two decimals, its thousands apart: ``1,200``, ``99.9``; None is a dash."""
    return _NOTHING if value is None else f"{value:,.2f}".rstrip("0").rstrip(".")


@register.filter
def duration(value: timedelta | float | None) -> str:
    """Write seconds, or a timedelta, in its two largest units: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 d 4 h``."""
    if value is None:
        return _NOTHING
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if abs(whole) < _MINUTE:
        return f"{whole} s"
    for unit, name, smaller, smaller_name in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min")):
        if abs(whole) >= unit:
            return _two_units(whole, unit, name, smaller, smaller_name)
    return _two_units(whole, _MINUTE, "min", 1, "s")


@register.filter
def milliseconds(value: float | None) -> str:
    """Write milliseconds: below ten seconds as ``350 ms``, above as a duration."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f} ms" if abs(value) < 10_000 else duration(value / 1000)


@register.filter
def size(value: int | None) -> str:
    """Write a number of bytes in decimal units: ``41 MB``."""
    if value is None:
        return _NOTHING
    amount = float(value)
    for unit in _UNITS:
        if abs(amount) < 1000 or unit == _UNITS[-1]:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


@register.filter
def moment(value: datetime | None) -> SafeString | str:
    """Write a time in UTC, to the second, as a ``time`` element: ``2026-07-01 03:00:00``."""
    if value is None:
        return _NOTHING
    in_utc = value.astimezone(UTC)
    return format_html(
        '<time datetime="{}">{}</time>', in_utc.isoformat(timespec="milliseconds"), f"{in_utc:%Y-%m-%d %H:%M:%S}"
    )


def _two_units(seconds: int, unit: int, name: str, smaller: int, smaller_name: str) -> str:
    large, rest = divmod(abs(seconds), unit)
    small = rest // smaller
    sign = "-" if seconds < 0 else ""
    return f"{sign}{large} {name} {small} {smaller_name}" if small else f"{sign}{large} {name}"
