"""Alarms about messages that could not be handled: the share of errors of a group, and the open dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from django.conf import settings

from ..registry import groups
from .alerts import alert_rule
from .dead_letter_counts import open_dead_letters
from .evaluation import Condition, register_judge
from .samples import counts_since

ERRORS = alert_rule("errors", "critical", settings=("ALERT_ERROR_PERCENT",))
DEAD_LETTERS = alert_rule("dead-letters", "critical", settings=("ALERT_DEAD_LETTERS",))

WINDOW_SECONDS = 300.0
# With fewer the percentage means nothing.
FEWEST_HANDLED = 200
FEWEST_ERRORS = 2
# Counters of a group's samples: each counts messages, or requests, that ended without success.
ERROR_COUNTERS = ("dead_letters", "passed_over", "errors")


def register() -> None:
    """Register the judges; called once, when the app is ready."""
    register_judge([ERRORS], judge_errors)
    register_judge([DEAD_LETTERS], judge_dead_letters)


def judge_errors() -> Iterator[Condition]:
    """Yield the groups of which more than ``ALERT_ERROR_PERCENT`` of the messages of five minutes were errors.

    Requests that the rules of a coupon refuse are handled with success.
    """
    percent = settings.ALERT_ERROR_PERCENT
    if not percent:
        return
    counts = counts_since(WINDOW_SECONDS)
    for group in groups():
        counted = counts.get(group, {})
        handled = counted.get("handled", 0.0)
        by_counter = {name: counted[name] for name in ERROR_COUNTERS if counted.get(name)}
        errors = sum(by_counter.values())
        if handled >= FEWEST_HANDLED and errors >= FEWEST_ERRORS and 100 * errors > percent * handled:
            kinds = ", ".join(f"{number:.0f} {name.replace('_', ' ')}" for name, number in by_counter.items())
            yield Condition(
                ERRORS,
                f"{group}: {errors:.0f} of {handled:.0f} messages of the last 5 minutes failed ({kinds}),"
                f" more than {percent:g} %",
                group,
            )


def judge_dead_letters() -> Iterator[Condition]:
    """Yield one condition if more than ``ALERT_DEAD_LETTERS`` dead letters of all groups are open."""
    most = settings.ALERT_DEAD_LETTERS
    if not most:
        return
    found = open_dead_letters(at_least=most)
    if not found.is_more and found.total <= most:
        return
    by_group: Counter[str] = Counter()
    for kind in found.counts:
        by_group[kind.consumer_group] += kind.number
    text = f"more than {found.total}" if found.is_more else str(found.total)
    of_groups = ", ".join(f"{letters} of {group}" for group, letters in by_group.most_common())
    yield Condition(
        DEAD_LETTERS, f"{text} dead letters are open, more than {most}; of the newest {found.total}: {of_groups}"
    )
