"""The duty of judging alarms: one process at a time has it, the others stand by.

The duty is a lease, a row with the database's clock, and not a session's lock: a process that hangs keeps its session,
and behind a pooler in transaction mode a session is not its own. Only judging extends the lease. So a process that is
killed, hangs, or cannot judge loses it, and a process that stops releases it.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime
from uuid import uuid4

from django.db import connection

from common.processes.lifecycle import StopFlag, drop_connection, first_line

from ..models import AlarmLease
from .evaluation import AlertEvaluator

logger = logging.getLogger(__name__)

TICK_SECONDS = 5.0
# Three ticks. A killed or hanging process is replaced a tick later at the latest.
LEASE_SECONDS = 15.0
# With an older judgement the alarms do not work, or another process judges them.
JUDGED_WITHIN_SECONDS = LEASE_SECONDS
# A judgement extends the lease once so much of it is over: each extension is a commit.
EXTEND_AFTER_SECONDS = LEASE_SECONDS / 3
# A thread that waits for the database must not delay the end of the process.
END_SECONDS = 5.0
# With a judge that fails for longer the alarms count as not judged.
INCOMPLETE_SECONDS = 60.0

_TABLE = AlarmLease._meta.db_table
_EXPIRES = f"statement_timestamp() + interval '{LEASE_SECONDS} seconds'"
# An expired lease that no other process has taken is still valid: a slow judgement is better than none.
_READ = f"SELECT coalesce(owner = %(owner)s, false), judged_at FROM {_TABLE} WHERE id = 1"
_TAKE = f"""
    INSERT INTO {_TABLE} AS lease (id, owner, expires_at) VALUES (1, %(owner)s, {_EXPIRES})
    ON CONFLICT (id) DO UPDATE SET owner = EXCLUDED.owner, expires_at = EXCLUDED.expires_at
    WHERE lease.owner IS NULL OR lease.expires_at <= statement_timestamp()
"""
_JUDGED = f"""
    UPDATE {_TABLE} SET judged_at = statement_timestamp(), expires_at = {_EXPIRES} WHERE id = 1 AND owner = %(owner)s
"""
_EXTEND = f"UPDATE {_TABLE} SET expires_at = {_EXPIRES} WHERE id = 1 AND owner = %(owner)s"
_RELEASE = f"UPDATE {_TABLE} SET owner = NULL, expires_at = NULL WHERE id = 1 AND owner = %(owner)s"


def is_recent(judged_at: float | None) -> bool:
    """Whether alarms judged at ``judged_at``, on the monotonic clock, count as judged; None: never judged."""
    return judged_at is not None and time.monotonic() - judged_at < JUDGED_WITHIN_SECONDS


class AlarmDuty(threading.Thread):
    """Judges alarms every five seconds while no other process does."""

    def __init__(self, stop: StopFlag) -> None:
        super().__init__(name="alarms", daemon=True)
        self._stop_flag = stop
        self._values = {"owner": uuid4()}
        # None: another process has the duty.
        self._evaluator: AlertEvaluator | None = None
        # On the monotonic clock: when this process last judged the alarms.
        self.judged_at: float | None = None
        self._complete_at = time.monotonic()
        self._extended_at = float("-inf")

    def run(self) -> None:
        """Judge until the process stops; an error is logged and ends nothing."""
        while not self._stop_flag:
            try:
                self.step()
            except Exception as error:
                logger.warning("alarms are not judged, next attempt in 5 s: %s", first_line(error))
                drop_connection()
            self._stop_flag.wait(TICK_SECONDS)
        self._release()
        drop_connection()

    def end(self) -> None:
        """Wait up to ``END_SECONDS`` for the thread, once the process was asked to stop."""
        self.join(END_SECONDS)

    def step(self) -> bool:
        """Judge once if this process has the duty or can take it; returns whether it judged.

        Raises what the database raises.
        """
        is_mine, judged_at = self._read_lease()
        if not is_mine:
            if self._evaluator is not None:
                logger.warning("another process judges the alarms: this one was away for too long")
            self._evaluator = None
            if not self._execute(_TAKE):
                return False
            logger.info("this process judges the alarms")
        self._evaluator = self._evaluator or AlertEvaluator(self._values["owner"], judged_at=judged_at)
        is_complete = self._evaluator.tick(self.keep)
        now = time.monotonic()
        if not self._execute(_JUDGED):
            return False
        self._extended_at = now
        if is_complete:
            self._complete_at = now
        # Alarms that one judge cannot judge for a minute do not work: the dead man's switch says so.
        if now - self._complete_at < INCOMPLETE_SECONDS:
            self.judged_at = now
        return True

    def keep(self) -> bool:
        """Extend the lease if a part of it is over; returns whether this process still has it."""
        now = time.monotonic()
        if now - self._extended_at < EXTEND_AFTER_SECONDS:
            return True
        self._extended_at = now
        return self._execute(_EXTEND)

    def _read_lease(self) -> tuple[bool, datetime | None]:
        """Return whether this process has the duty, and when a process last judged."""
        with connection.cursor() as cursor:
            cursor.execute(_READ, self._values)
            return cursor.fetchone() or (False, None)

    def _execute(self, sql: str) -> bool:
        """Return whether the statement changed the row."""
        with connection.cursor() as cursor:
            cursor.execute(sql, self._values)
            return bool(cursor.rowcount)

    def _release(self) -> None:
        """Let another process judge at once. Best effort: the lease expires."""
        if self._evaluator is None:
            return
        try:
            self._execute(_RELEASE)
        except Exception as error:
            logger.warning("duty of judging alarms not released, it expires: %s", first_line(error))
