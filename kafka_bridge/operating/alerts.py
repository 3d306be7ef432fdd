"""Alerts for operators, as rows; at most one per rule is open."""

from __future__ import annotations

import logging
from functools import partial
from typing import Literal

from django.db import connection, transaction
from uuid_utils.compat import uuid7

from ..models import Alert

logger = logging.getLogger(__name__)

_OPEN = f"""
    INSERT INTO {Alert._meta.db_table} (id, rule, severity, summary, runbook)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (rule) WHERE ended_at IS NULL DO NOTHING
"""
_END = f"""
    UPDATE {Alert._meta.db_table} SET ended_at = statement_timestamp()
    WHERE rule = %s AND ended_at IS NULL AND started_at <= statement_timestamp() - %s * interval '1 second'
"""
_END_ALL = f"""
    UPDATE {Alert._meta.db_table} SET ended_at = statement_timestamp()
    WHERE starts_with(rule, %s) AND ended_at IS NULL
    RETURNING rule
"""


def open_alert(*, rule: str, severity: Literal["warning", "critical"], summary: str, runbook: str) -> bool:
    """Open an alert of ``rule`` unless one is open; returns whether it is new.

    ``runbook`` is a path and anchor, as in ``docs/operations.md#a-group-that-waits``. Within a transaction the alert is
    logged once that is committed.
    """
    with connection.cursor() as cursor:
        cursor.execute(_OPEN, [uuid7(), rule, severity, summary, runbook])
        is_new: bool = cursor.rowcount == 1
    if is_new:
        transaction.on_commit(partial(logger.error, "alert %s (%s): %s; see %s", rule, severity, summary, runbook))
    return is_new


def end_alert(rule: str, *, open_for_seconds: float = 0.0) -> bool:
    """End the alert of ``rule`` if it has been open for ``open_for_seconds``; returns whether one was ended."""
    with connection.cursor() as cursor:
        cursor.execute(_END, [rule, open_for_seconds])
        ended: bool = cursor.rowcount == 1
    if ended:
        transaction.on_commit(partial(logger.info, "alert %s has ended", rule))
    return ended


def end_alerts(prefix: str) -> None:
    """End the open alerts of all rules whose names begin with ``prefix``."""
    with connection.cursor() as cursor:
        cursor.execute(_END_ALL, [prefix])
        rules = [rule for (rule,) in cursor.fetchall()]
    for rule in rules:
        transaction.on_commit(partial(logger.info, "alert %s has ended", rule))
