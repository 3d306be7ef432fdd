"""Deletion of old rows in small batches: each batch is its own transaction, followed by a pause.

Rows that another session has locked are left for a later run, so that two housekeepers do not wait for each other; a
lock on the whole table fails the batch after ``lock_limits.LOCK_SECONDS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from django.db import connection, transaction

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag

BATCH_SIZE = 1000
# Leaves the disk and autovacuum to the others.
PAUSE_SECONDS = 0.05

_DELETE_AGED = """
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table} AS aged
        WHERE {column} < statement_timestamp() - %s * interval '1 second' AND {condition}
        ORDER BY {column} LIMIT %s
        FOR UPDATE SKIP LOCKED
    ))
"""
_OLDEST = """
    SELECT id, {column} < statement_timestamp() - %s * interval '1 second'
    FROM {table} WHERE id > %s ORDER BY id LIMIT %s
"""
_DELETE_BY_ID = """
    DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id = ANY(%s) FOR UPDATE SKIP LOCKED)
"""


def prune_aged(
    table: str,
    column: str,
    kept: timedelta,
    stop: StopFlag,
    *,
    condition: str = "true",
    values: Sequence[str] = (),
) -> int:
    """Delete the rows whose ``column`` is older than ``kept`` and that fulfil ``condition``; returns how many.

    An index must serve column and condition. In the condition the table's alias is ``aged``; ``values`` are its
    parameters.
    """
    statement = _DELETE_AGED.format(table=table, column=column, condition=condition)
    deleted = 0
    while not stop:
        with transaction.atomic():
            limit_lock_waits()
            with connection.cursor() as cursor:
                cursor.execute(statement, [kept.total_seconds(), *values, BATCH_SIZE])
                batch = cursor.rowcount
        deleted += batch
        if batch < BATCH_SIZE:
            break
        stop.wait(PAUSE_SECONDS)
    return deleted


def prune_oldest(table: str, column: str, kept: timedelta, stop: StopFlag) -> int:
    """Delete the rows whose ``column`` is older than ``kept`` in the order of ``id``; returns how many.

    For a table whose ids rise with ``column``: the primary key serves it, without an index of the times.
    """
    oldest, delete = (text.format(table=table, column=column) for text in (_OLDEST, _DELETE_BY_ID))
    deleted = last_id = 0
    while not stop:
        with transaction.atomic():
            limit_lock_waits()
            with connection.cursor() as cursor:
                cursor.execute(oldest, [kept.total_seconds(), last_id, BATCH_SIZE])
                rows = cursor.fetchall()
                if aged := [row_id for row_id, is_aged in rows if is_aged]:
                    cursor.execute(delete, [aged])
                    deleted += cursor.rowcount
        if len(aged) < BATCH_SIZE:
            break
        last_id = rows[-1][0]
        stop.wait(PAUSE_SECONDS)
    return deleted
