"""The evaluator: it judges the registered conditions, opens alerts that last and ends those that are over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.conf import settings

from common.postgres.clock import database_time
from common.processes.lifecycle import drop_connection, first_line
from common.processes.outages import is_database_outage

from .alerts import AlertRule, OpenAlert, end_cleared, end_rules, note_still_true, open_alert, open_rules

logger = logging.getLogger(__name__)

# Between two judgements: longer than another process takes to take over.
_LONGEST_GAP = timedelta(seconds=30)


class Condition(NamedTuple):
    """Something that is wrong now. The alert opens once it has been wrong for ``for_seconds``."""

    rule: AlertRule
    summary: str
    subject: str = ""
    for_seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.rule.of(self.subject)


class NotJudged(Exception):
    """A judge lacks recent figures, as in the first moments of a process: its alerts neither open nor end."""


# Returns what is wrong now. While it raises, its alerts neither open nor end.
Judge = Callable[[], Iterable[Condition]]
# Judges with the rules whose alerts they open and end.
Judges = Sequence[tuple[Sequence[AlertRule], Judge]]

_judges: list[tuple[Sequence[AlertRule], Judge]] = []


def register_judge(rules: Sequence[AlertRule], judge: Judge) -> None:
    """Register ``judge``, which alone opens and ends the alerts of ``rules``."""
    _judges.append((rules, judge))


class AlertEvaluator:
    """Judges all conditions at each tick, by the database's clock. One of these works at a time, see ``alarm_duty``."""

    def __init__(
        self, owner: UUID | None = None, *, judged_at: datetime | None = None, judges: Judges | None = None
    ) -> None:
        """``owner``: alerts are opened and ended only while it has the lease of judging; None: always.

        ``judged_at``: when another process last judged, by the database's clock; None: there was none. ``judges``:
        those registered unless given.
        """
        self._owner = owner
        self._other_judged_at = judged_at
        self._judges = _judges if judges is None else judges
        # By the rule of an alert: since when its condition is true, as far as this process knows.
        self._true_since: dict[str, datetime] = {}
        # By the number of a judge: its last judgement, and its first one after a gap.
        self._judged_at: dict[int, datetime] = {}
        self._resumed_at: dict[int, datetime] = {}
        # By the number of a judge that failed last: whether by an error.
        self._failing: dict[int, bool] = {}

    def tick(self, keep_duty: Callable[[], bool] = lambda: True) -> bool:
        """Judge once; returns whether no judge failed by an error. Raises what the database raises when it is away.

        ``keep_duty`` is called before each judge: together they may take longer than the lease. False ends the tick.
        """
        now = database_time()
        open_now = open_rules()
        if any(alert.is_cleared for alert in open_now.values()):
            end_cleared(on_duty=self._owner)
        complete = True
        for number, (rules, judge) in enumerate(self._judges):
            if not keep_duty():
                return False
            conditions = self._judge(number, rules, judge)
            if conditions is None:
                complete = complete and not self._failing[number]
                continue
            self._look_for_gap(number, rules, now)
            self._open(rules, conditions, now, open_now)
            self._end(number, rules, conditions, now, open_now)
        return complete

    def _judge(self, number: int, rules: Sequence[AlertRule], judge: Judge) -> list[Condition] | None:
        """Return what is wrong, None if the judge fails. Raises what the database raises when it is away."""
        names = ", ".join(rule.name for rule in rules)
        try:
            conditions = list(judge())
            if strange := {condition.rule.name for condition in conditions if condition.rule not in rules}:
                raise ValueError(f"conditions of other rules: {', '.join(sorted(strange))}")
        except Exception as error:
            is_broken = not isinstance(error, NotJudged)
            if is_broken:
                drop_connection()
            if is_database_outage(error):
                # A limit exceeded or a session ended concerns this judge alone, unless the database does not answer.
                database_time()
            if number not in self._failing:
                level = logging.WARNING if is_broken else logging.INFO
                logger.log(level, "alerts %s are not judged, tried at every tick: %s", names, first_line(error))
            self._failing[number] = is_broken
            return None
        if self._failing.pop(number, None) is not None:
            logger.info("alerts %s are judged again", names)
        return conditions

    def _look_for_gap(self, number: int, rules: Sequence[AlertRule], now: datetime) -> None:
        """Count durations anew if there was no judgement for long: what was true or false meanwhile is not known."""
        judged_at = self._judged_at.get(number, self._other_judged_at)
        self._judged_at[number] = now
        if judged_at is not None and now - judged_at > _LONGEST_GAP:
            self._resumed_at[number] = now
            self._forget([name for name in self._true_since if _is_of(rules, name)])

    def _open(
        self, rules: Sequence[AlertRule], conditions: Sequence[Condition], now: datetime, open_now: Collection[str]
    ) -> None:
        wrong = {condition.name for condition in conditions}
        self._forget([name for name in self._true_since if name not in wrong and _is_of(rules, name)])
        for condition in conditions:
            since = self._true_since.setdefault(condition.name, now)
            is_due = now - since >= timedelta(seconds=condition.for_seconds)
            if is_due and condition.name not in open_now:
                open_alert(condition.rule, condition.summary, subject=condition.subject, on_duty=self._owner)
        note_still_true(wrong, now, on_duty=self._owner)

    def _end(
        self,
        number: int,
        rules: Sequence[AlertRule],
        conditions: Sequence[Condition],
        now: datetime,
        open_now: Mapping[str, OpenAlert],
    ) -> None:
        wrong = {condition.name for condition in conditions}
        end_after = timedelta(seconds=settings.ALERT_END_SECONDS)
        resumed_at = self._resumed_at.get(number)
        over = [
            name
            for name, (true_at, _) in open_now.items()
            if name not in wrong and _is_of(rules, name) and now - max(true_at, resumed_at or true_at) >= end_after
        ]
        end_rules(over, on_duty=self._owner)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self._true_since[name]


def judge_rule(rule_name: str) -> None:
    """Judge one rule now and open its alerts that need not last; the evaluator ends them.

    For a process that learns at once that the condition has become true. Raises what the judge raises.
    """
    for rules, judge in _judges:
        if any(rule.name == rule_name for rule in rules):
            for condition in judge():
                if condition.rule.name == rule_name and not condition.for_seconds:
                    open_alert(condition.rule, condition.summary, subject=condition.subject)


def _is_of(rules: Sequence[AlertRule], name: str) -> bool:
    return any(rule.has(name) for rule in rules)
