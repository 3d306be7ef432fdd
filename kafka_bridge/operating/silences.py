"""Silences: rules whose alerts are not notified until a given time. ``notifications`` obeys them."""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from ..models import AlertSilence

logger = logging.getLogger(__name__)

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
    with connection.cursor() as cursor:
        cursor.execute(_SILENCE, [rule, seconds, reason, actor])
        (until,) = cursor.fetchone() or (None,)
    assert isinstance(until, datetime)
    logger.info("alert rule %s is silenced until %s by %s: %s", rule, until, actor, reason)
    return until


def end_silence(*, rule: str, actor: str) -> bool:
    """End the silence of ``rule`` now; returns whether one was in force."""
    ended, _ = silences().filter(rule=rule).delete()
    if ended:
        logger.info("the silence of alert rule %s is ended by %s", rule, actor)
    return bool(ended)
