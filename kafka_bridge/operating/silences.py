"""Silences: rules whose alerts are not notified until a given time. ``notifications`` obeys them."""

from __future__ import annotations

from datetime import datetime

from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.postgres.clock import isoformat_z

from ..models import AlertSilence
from .audit import Values, record_action

_SILENCE = f"""
    INSERT INTO {AlertSilence._meta.db_table} AS silence (rule, until, reason, actor, created_at)
    VALUES (%s, statement_timestamp() + %s * interval '1 second', %s, %s, statement_timestamp())
    ON CONFLICT (rule) DO UPDATE SET
        until = EXCLUDED.until, reason = EXCLUDED.reason, actor = EXCLUDED.actor,
        -- An extended silence began when it first did: what began and ended within it is not notified.
        created_at = CASE WHEN silence.until > statement_timestamp() THEN silence.created_at
                          ELSE EXCLUDED.created_at END
    RETURNING until
"""


def silences() -> QuerySet[AlertSilence]:
    """Select the silences in force, by the database's clock, the first to end first."""
    return AlertSilence.objects.filter(until__gt=Now()).order_by("until", "rule")


def silence_rule(*, rule: str, seconds: int, reason: str, actor: str) -> datetime:
    """Silence ``rule`` for so long from now; returns the end. A silence in force is replaced.

    ``rule`` is the name of a rule, for all its subjects, or the rule of one subject (``AlertRule.of``).
    """
    with transaction.atomic():
        before = _in_force(rule)
        with connection.cursor() as cursor:
            cursor.execute(_SILENCE, [rule, seconds, reason, actor])
            (until,) = cursor.fetchone() or (None,)
        assert isinstance(until, datetime)
        record_action(
            actor=actor, action="alert.silence", subject=f"rule {rule}", reason=reason,
            before=before, after=_in_force(rule),
        )  # fmt: skip
    return until


def end_silence(*, rule: str, actor: str, reason: str) -> bool:
    """End the silence of ``rule`` now; returns whether one was in force.

    Its row stays until it is pruned: an alert that began and ended within the silence is not notified afterwards.
    """
    with transaction.atomic():
        before = _in_force(rule)
        if before is None:
            return False
        AlertSilence.objects.filter(rule=rule).update(until=Now())
        record_action(actor=actor, action="alert.unsilence", subject=f"rule {rule}", reason=reason, before=before)
    return True


def _in_force(rule: str) -> Values | None:
    """Return the silence of ``rule`` for the audit trail, and lock it; None without one."""
    silence = silences().select_for_update().filter(rule=rule).first()
    if silence is None:
        return None
    return {"until": isoformat_z(silence.until), "reason": silence.reason, "actor": silence.actor}
