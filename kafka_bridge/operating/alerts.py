"""Alerts for operators, as rows, and their rules; at most one alert per rule and subject is open."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from uuid_utils.compat import uuid7

from common.postgres.texts import storable

from ..models import AlarmLease, Alert, AlertNotification

logger = logging.getLogger(__name__)

Severity = Literal["warning", "critical"]

_RULE_LENGTH = Alert._meta.get_field("rule").max_length or 0
# Leaves room for a subject.
_LONGEST_NAME = 40

# A process that hung and goes on must not write what it judged before another process took over.
_ON_DUTY = f"""
    (%(owner)s::uuid IS NULL OR EXISTS (SELECT FROM {AlarmLease._meta.db_table} WHERE owner = %(owner)s::uuid))
"""
# A notification is inserted with the change that it reports, so that none is lost.
_OPEN = f"""
    WITH opened AS (
        INSERT INTO {Alert._meta.db_table} (id, rule, severity, summary, runbook)
        SELECT %(id)s::uuid, %(rule)s, %(severity)s, %(summary)s, %(runbook)s WHERE {_ON_DUTY}
        ON CONFLICT (rule) WHERE ended_at IS NULL DO NOTHING
        RETURNING id
    ), kept AS (
        -- Not by DO UPDATE, which locks the row of any open alert: issuers open alerts in their transactions.
        UPDATE {Alert._meta.db_table} SET cleared_at = NULL
        WHERE rule = %(rule)s AND ended_at IS NULL AND cleared_at IS NOT NULL
    )
    INSERT INTO {AlertNotification._meta.db_table} (alert_id, phase) SELECT id, 'start' FROM opened
"""
_CLEAR = f"""
    UPDATE {Alert._meta.db_table} SET cleared_at = statement_timestamp()
    WHERE rule = ANY(%(rules)s) AND ended_at IS NULL AND cleared_at IS NULL
      AND started_at <= statement_timestamp() - %(seconds)s * interval '1 second'
"""


def _end_sql(condition: str) -> str:
    return f"""
        WITH ended AS (
            UPDATE {Alert._meta.db_table} SET ended_at = statement_timestamp()
            WHERE ended_at IS NULL AND {condition} AND {_ON_DUTY}
            RETURNING id, rule
        ), notified AS (
            INSERT INTO {AlertNotification._meta.db_table} (alert_id, phase) SELECT id, 'end' FROM ended
        )
        SELECT rule FROM ended
    """


_END = _end_sql("rule = ANY(%(rules)s)")
_END_CLEARED = _end_sql("cleared_at <= statement_timestamp() - %(seconds)s * interval '1 second'")
_STILL_TRUE = f"""
    UPDATE {Alert._meta.db_table} SET last_true_at = %(now)s
    WHERE rule = ANY(%(rules)s) AND ended_at IS NULL AND {_ON_DUTY}
"""
# By the index of open alerts: there are few.
_OPEN_RULES = f"""
    SELECT rule, coalesce(last_true_at, started_at), cleared_at IS NOT NULL
    FROM {Alert._meta.db_table} WHERE ended_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """A kind of alert. Its runbook is the page ``docs/runbooks/<name>.md``.

    ``settings`` names the settings of its thresholds. An alert of a subject (a group, a topic) has the rule
    ``<name>-<subject>``: each subject has an alert of its own.
    """

    name: str
    severity: Severity
    settings: tuple[str, ...] = ()

    @property
    def runbook(self) -> str:
        return f"docs/runbooks/{self.name}.md"

    def of(self, subject: str) -> str:
        """Return the rule of the alert of ``subject``; a long subject is cut, and distinguished by a checksum."""
        rule = f"{self.name}-{subject}" if subject else self.name
        if len(rule) <= _RULE_LENGTH:
            return rule
        return f"{rule[: _RULE_LENGTH - 9]}-{zlib.crc32(subject.encode()):08x}"

    def has(self, rule: str) -> bool:
        """Return whether ``rule``, of an alert, is of this kind."""
        return f"{rule}-".startswith(f"{self.name}-")


class OpenAlert(NamedTuple):
    """When the condition of an open alert was last true, and whether ``clear_alert`` has said that it is false now."""

    last_true_at: datetime
    is_cleared: bool


_rules: dict[str, AlertRule] = {}


def alert_rule(name: str, severity: Severity, *, settings: tuple[str, ...] = ()) -> AlertRule:
    """Register a rule and return it.

    Raises ValueError if another rule has the name, or if one name continues the other after a hyphen: their alerts
    could not be distinguished.
    """
    rule = AlertRule(name, severity, settings)
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"alert rule {name!r} has more than {_LONGEST_NAME} characters")
    for other in _rules.values():
        if other != rule and (other.has(name) or rule.has(other.name)):
            raise ValueError(f"alerts of rule {name!r} could not be told from those of {other.name!r}")
    return _rules.setdefault(name, rule)


def alert_rules() -> dict[str, AlertRule]:
    """Return the registered rules by name."""
    return dict(_rules)


def open_alert(rule: AlertRule, summary: str, *, subject: str = "", on_duty: UUID | None = None) -> bool:
    """Open an alert of ``rule`` and ``subject`` unless one is open; returns whether it is new.

    Within a transaction the alert is logged once that is committed. With ``on_duty``, only while that owner has the
    lease of judging.
    """
    name = rule.of(subject)
    summary = storable(summary)
    values: dict[str, Any] = {
        "id": uuid7(),
        "rule": name,
        "severity": rule.severity,
        "summary": summary,
        "runbook": rule.runbook,
        "owner": on_duty,
    }
    with connection.cursor() as cursor:
        cursor.execute(_OPEN, values)
        is_new: bool = cursor.rowcount == 1
    if is_new:
        log = partial(logger.error, "alert %s (%s): %s; see %s", name, rule.severity, summary, rule.runbook)
        transaction.on_commit(log)
    return is_new


def clear_alert(rule: AlertRule, *, subject: str = "", open_for_seconds: float = 0.0) -> None:
    """Record that the condition of ``rule`` and ``subject`` is false now, if its alert has been open for so long.

    The evaluator ends the alert after ``ALERT_END_SECONDS``, unless it is opened again until then.
    """
    _clear([rule.of(subject)], open_for_seconds)


def clear_alerts(rule: AlertRule) -> None:
    """Do what ``clear_alert`` does for the open alerts of ``rule``, of all subjects."""
    _clear([name for name in open_rules() if rule.has(name)])


def _clear(names: Sequence[str], open_for_seconds: float = 0.0) -> None:
    if names:
        with connection.cursor() as cursor:
            cursor.execute(_CLEAR, {"rules": list(names), "seconds": open_for_seconds})
    if not settings.ALERT_END_SECONDS:
        end_cleared()


def open_rules() -> dict[str, OpenAlert]:
    """Return the open alerts by their rule with its subject."""
    with connection.cursor() as cursor:
        cursor.execute(_OPEN_RULES)
        return {rule: OpenAlert(last_true_at, is_cleared) for rule, last_true_at, is_cleared in cursor.fetchall()}


def end_rules(names: Sequence[str], *, on_duty: UUID | None = None) -> list[str]:
    """End the open alerts named (``AlertRule.of``); returns the names of those that were open.

    With ``on_duty``, only while that owner has the lease of judging.
    """
    return _end(_END, rules=list(names), owner=on_duty) if names else []


def end_cleared(*, on_duty: UUID | None = None) -> list[str]:
    """End the alerts that were cleared ``ALERT_END_SECONDS`` ago; ``on_duty`` and returns as with ``end_rules``."""
    return _end(_END_CLEARED, seconds=settings.ALERT_END_SECONDS, owner=on_duty)


def _end(sql: str, **values: Any) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        ended = [name for (name,) in cursor.fetchall()]
    for name in ended:
        transaction.on_commit(partial(logger.info, "alert %s has ended", name))
    return ended


def note_still_true(names: Iterable[str], now: datetime, *, on_duty: UUID | None = None) -> None:
    """Record that the conditions of the open alerts named are true at ``now``, by the database's clock."""
    if rules := list(names):
        with connection.cursor() as cursor:
            cursor.execute(_STILL_TRUE, {"rules": rules, "now": now, "owner": on_duty})
