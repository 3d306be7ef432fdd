"""The key figures of messaging, over the last five minutes, with their targets."""

from __future__ import annotations

from typing import NamedTuple

from common.postgres.limited_reads import limited_read

from ..registry import groups
from .message_alarms import ERROR_COUNTERS, WINDOW_SECONDS
from .samples import counts_since

MOST_LAG_MS = 1000.0
LEAST_SUCCESS_PERCENT = 99.9
MOST_PROCESSING_MS = 100.0
MOST_DEAD_LETTER_PERCENT = 0.1

# The group whose processing time is a key figure.
PROCESSING_GROUP = "issue"
# By the index of the samples' times: folded to minutes, but for the last hour.
_DAY = """
    SELECT coalesce(sum((counts ->> 'handled')::double precision), 0),
           coalesce(sum((counts ->> 'dead_letters')::double precision), 0)
    FROM kafka_bridge_sample
    WHERE taken_at > statement_timestamp() - interval '1 day' AND source = ANY(%(groups)s)
"""


class Kpi(NamedTuple):
    """A key figure: ``value`` and ``target`` in ``unit``, and whether the target is met.

    ``value`` and ``ok`` are None without a message in that time, or without a known lag.
    """

    name: str
    value: float | None
    target: float
    unit: str
    ok: bool | None


def kpis(lag_ms: float | None) -> list[Kpi]:
    """Return the key figures; ``lag_ms`` is the largest lag of any partition, None if it is not known.

    Lag; success: of all groups, the messages without an error; processing: of the group ``issue``, from the begin of
    handling to the commit, a mean of messages; dead letters: of all messages of a day.
    """
    counts = counts_since(WINDOW_SECONDS)
    lately = [counts[name] for name in groups() if name in counts]
    handled = sum(of_group.get("handled", 0.0) for of_group in lately)
    errors = sum(of_group.get(name, 0.0) for of_group in lately for name in ERROR_COUNTERS)
    issue = counts.get(PROCESSING_GROUP, {})
    ((handled_in_a_day, letters),) = limited_read(_DAY, {"groups": list(groups())})
    return [
        _at_most("lag", lag_ms, MOST_LAG_MS, "ms"),
        _at_least("success", _ratio(100.0 * (handled - errors), handled), LEAST_SUCCESS_PERCENT, "%"),
        _at_most(
            "processing",
            _ratio(1000.0 * issue.get("message_seconds", 0.0), issue.get("handled", 0.0)),
            MOST_PROCESSING_MS,
            "ms",
        ),
        _at_most("dead letters", _ratio(100.0 * letters, handled_in_a_day), MOST_DEAD_LETTER_PERCENT, "%"),
    ]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _at_most(name: str, value: float | None, target: float, unit: str) -> Kpi:
    return Kpi(name, value, target, unit, None if value is None else value <= target)


def _at_least(name: str, value: float | None, target: float, unit: str) -> Kpi:
    return Kpi(name, value, target, unit, None if value is None else value >= target)
