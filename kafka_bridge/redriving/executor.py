"""Execution of redrives: a thread of the housekeeper, or a command, makes previews and replays letters.

A redrive has a lease, by the database's clock: one process replays its letters. A result is written in the transaction
that closes the letter, so a killed process loses none. An error that is no outage pauses its own redrive, no other,
and a redrive whose row another session has locked waits alone.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from django.db import DataError, connection, transaction

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.log_limit import LogLimit
from common.processes.outages import is_contention, is_database_outage, is_transient
from common.throttling import CallPostponed

from ..errors import ReplayPostponed
from ..models import Redrive, RedriveItem
from .preview import Preview, PreviewBusy, preview_letters, redrive_letters
from .redrives import STOPPED_BY, results_of
from .replay import Replayed, ReplayInterrupted, ReplayResult, replay_letter

logger = logging.getLogger(__name__)

# Between two looks for work. A pause is obeyed after one and the replay in progress.
POLL_SECONDS = 0.5
# A killed process is replaced after it.
LEASE_SECONDS = 10.0
_EXTEND_SECONDS = 2.0
# No replay begins in a lease that is older: it could end in the lease of another process.
_LEASE_USED_SECONDS = 6.0
# In a row for one redrive, so that several take turns.
_SLICE_SECONDS = 0.5
_ITEMS = 50
# After an outage, doubled with each further one.
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 10.0
_RETRY_SECONDS = 1.0
# Of a letter that can be replayed only later, doubled with each further time.
LONGEST_POSTPONED_SECONDS = 300.0
END_SECONDS = 5.0
# For the row of a redrive that another session has locked: the other redrives wait as long.
_LOCK_SECONDS = 0.2

_REDRIVES = Redrive._meta.db_table
_ITEM_TABLE = RedriveItem._meta.db_table

_RUNNING = f"SELECT id, rate, counts::text FROM {_REDRIVES} WHERE state = 'running' ORDER BY id"
# A row that another session has locked is passed over, here and below: the redrive has its turn later.
_IF_FREE = "FOR NO KEY UPDATE SKIP LOCKED"
_WANTED = f"SELECT id, accepts_delay FROM {_REDRIVES} WHERE wants_preview ORDER BY id {_IF_FREE}"
_LEASE = f"""
    UPDATE {_REDRIVES} SET lease_owner = %(owner)s,
        leased_until = statement_timestamp() + interval '{LEASE_SECONDS} seconds'
    WHERE id = (
        SELECT id FROM {_REDRIVES} WHERE id = %(id)s AND state = 'running'
          AND (lease_owner IS NULL OR lease_owner = %(owner)s OR leased_until <= statement_timestamp())
        {_IF_FREE}
    )
"""
_RELEASE = f"""
    UPDATE {_REDRIVES} SET lease_owner = NULL, leased_until = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM {_REDRIVES} WHERE lease_owner = %(owner)s {_IF_FREE}))
"""
_DUE = f"""
    SELECT id, letter_id FROM {_ITEM_TABLE}
    WHERE redrive_id = %s AND done_at IS NULL AND due_at <= statement_timestamp()
    ORDER BY due_at, id LIMIT {_ITEMS}
"""
_FINISH = f"""
    WITH finished AS (
        UPDATE {_ITEM_TABLE} SET result = %(result)s, detail = %(detail)s, done_at = statement_timestamp()
        WHERE id = %(item)s AND done_at IS NULL RETURNING redrive_id, result
    )
    UPDATE {_REDRIVES} AS redrive SET waits_for = '', counts = counts || jsonb_build_object(
        result, coalesce((counts ->> result)::bigint, 0) + 1)
    FROM finished WHERE redrive.id = finished.redrive_id
"""
_DELAY = f"""
    WITH delayed AS (
        UPDATE {_ITEM_TABLE} SET due_at = statement_timestamp() + %(seconds)s * interval '1 second', detail = %(detail)s
        WHERE id = %(item)s AND done_at IS NULL RETURNING redrive_id
    )
    UPDATE {_REDRIVES} AS redrive SET waits_for = %(waits_for)s FROM delayed WHERE redrive.id = delayed.redrive_id
"""
_END = f"""
    UPDATE {_REDRIVES}
    SET state = 'done', ended_at = statement_timestamp(), lease_owner = NULL, leased_until = NULL, waits_for = ''
    WHERE id = (
        SELECT id FROM {_REDRIVES} AS redrive WHERE id = %s AND state = 'running'
          AND NOT EXISTS (SELECT FROM {_ITEM_TABLE} WHERE redrive_id = redrive.id AND done_at IS NULL)
        {_IF_FREE}
    )
"""
_PAUSE = f"""
    UPDATE {_REDRIVES} SET state = 'paused', waits_for = %(why)s, lease_owner = NULL, leased_until = NULL
    WHERE id = (SELECT id FROM {_REDRIVES} WHERE id = %(id)s AND state = 'running' {_IF_FREE})
"""
_IS_SAME = """
    starts_after_preview AND preview -> 'counts' = %(preview)s::jsonb -> 'counts'
    AND preview -> 'kinds' = %(preview)s::jsonb -> 'kinds'
"""
# A start that waits for the preview happens if the preview says what the last one said.
_PREVIEWED = f"""
    UPDATE {_REDRIVES} SET
        state = CASE WHEN {_IS_SAME} THEN 'running'
                     WHEN state = 'preparing' THEN 'previewed' ELSE state END,
        started_at = CASE WHEN {_IS_SAME}
                          THEN statement_timestamp() ELSE started_at END,
        preview = %(preview)s, previewed_at = statement_timestamp(), wants_preview = false, starts_after_preview = false
    WHERE id = %(id)s AND wants_preview
"""


class _Running(NamedTuple):
    id: int
    rate: int
    # JSON.
    counts: str


@dataclass(slots=True)
class _Progress:
    """Of a redrive in this process; times on the monotonic clock."""

    next_at: float = 0.0
    leased_at: float = float("-inf")
    failures: int = 0
    # By item: how often its letter was postponed.
    postponed: Counter[int] = field(default_factory=Counter)
    # By item: the result of a replay that could not be written, because of a lock.
    unwritten: dict[int, Replayed] = field(default_factory=dict)
    # The error for which the redrive is to be paused; empty: none.
    fault: str = ""


class RedriveExecutor:
    """Makes previews and replays letters, one at a time. ``only``: of this redrive, None: of all."""

    def __init__(self, *, only: int | None = None) -> None:
        self._only = only
        self._owner = uuid4()
        self._progress: dict[int, _Progress] = {}
        # The redrive whose preview was made last.
        self._previewed = 0
        self._log_limit = LogLimit(60.0)

    def step(self, stop: StopFlag) -> bool:
        """Make one of the previews that are wanted, and replay letters of each running redrive for half a second.

        Returns whether there is more to do at once. Raises an outage; another error is of one redrive, which it stops.
        """
        failure: Exception | None = None
        wanted = self._rows(_WANTED)
        is_previewed = False
        if wanted:
            # The next after the last one: a preview that cannot be made now delays no other.
            redrive_id, accepts_delay = min(wanted, key=lambda row: (row[0] <= self._previewed, row[0]))
            self._previewed = redrive_id
            try:
                is_previewed = self._make_preview(redrive_id, accepts_delay)
            except Exception as error:
                # Running redrives go on meanwhile.
                if is_transient(error) and not is_contention(error):
                    failure = error
                elif self._log_limit.due(("preview", redrive_id)):
                    logger.warning("redrive %d waits for its preview: %s", redrive_id, first_line(error))
        running = [_Running(*row) for row in self._rows(_RUNNING)]
        self._progress = {item.id: self._progress.get(item.id, _Progress()) for item in running}
        busy = [self._run_alone(redrive, stop) for redrive in running]
        if failure is not None:
            raise failure
        return any(busy) or (is_previewed and len(wanted) > 1)

    def release_if_possible(self) -> None:
        """Let another process go on at once; if the database does not answer, once the lease has expired."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(_RELEASE, {"owner": self._owner})
        except Exception as error:
            logger.warning("leases of redrives not released, they expire: %s", first_line(error))

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return [row for row in cursor.fetchall() if self._only in (None, row[0])]

    def _make_preview(self, redrive_id: int, accepts_delay: bool) -> bool:
        """Return False while another process makes a preview."""
        try:
            total, letter_ids = redrive_letters(redrive_id)
            preview = preview_letters(letter_ids, total=total, accepts_delay=accepts_delay)
        except PreviewBusy:
            return False
        except Exception as error:
            if is_transient(error):
                raise
            # A fault of the preview must not keep the redrive from being started.
            logger.exception("redrive %d: the preview failed", redrive_id)
            preview = Preview(0, 0, {}, {}, {}, [f"the preview failed: {first_line(error)}"], 0.0)
        try:
            _store_preview(redrive_id, preview)
        except (DataError, ValueError) as error:
            logger.exception("redrive %d: the preview cannot be stored", redrive_id)
            note = f"the preview cannot be stored: {first_line(error)}"
            _store_preview(redrive_id, Preview(preview.total, 0, {}, {}, {}, [note], preview.seconds))
        return True

    def _run_alone(self, redrive: _Running, stop: StopFlag) -> bool:
        """Run a redrive; returns whether its next letter is due. An error of its own pauses it, and no other.

        Raises an outage of PostgreSQL.
        """
        progress = self._progress[redrive.id]
        try:
            if not progress.fault:
                return self._run(redrive, progress, stop)
        except Exception as error:
            if _is_outage(error):
                raise
            if is_transient(error):
                progress.next_at = max(progress.next_at, time.monotonic() + _RETRY_SECONDS)
                # Its row may be locked: the next lease shows whether it is free.
                progress.leased_at = float("-inf")
                if self._log_limit.due(redrive.id):
                    logger.warning("redrive %d waits, the others go on: %s", redrive.id, first_line(error))
                return False
            logger.exception("redrive %d is paused by an error, the others go on", redrive.id)
            progress.fault = f"{type(error).__name__}: {first_line(error)}"
        try:
            if _pause(redrive.id, progress.fault):
                # Resumed, it is tried anew.
                progress.fault = ""
        except Exception as error:
            # It is tried again at the next step, and nothing is replayed before.
            if _is_outage(error):
                raise
            if self._log_limit.due(("pause", redrive.id)):
                logger.warning("redrive %d cannot be paused: %s", redrive.id, first_line(error))
        return False

    def _run(self, redrive: _Running, progress: _Progress, stop: StopFlag) -> bool:
        """Replay letters for half a second; returns whether the next one is due. Raises what stops this redrive."""
        ends_at = time.monotonic() + _SLICE_SECONDS
        if progress.next_at > ends_at or not self._lease(redrive.id, progress):
            return False
        # Before a letter is replayed whose result could not be counted.
        results_of(json.loads(redrive.counts))
        _write_results(progress.unwritten)
        items = self._due(redrive.id)
        if not items:
            self._end(redrive.id)
            return False
        # A process that was busy elsewhere does not make up for the time.
        progress.next_at = max(progress.next_at, time.monotonic() - 1 / redrive.rate)
        for item_id, letter_id in items:
            if stop.wait(max(0.0, min(progress.next_at, ends_at) - time.monotonic())):
                return False
            now = time.monotonic()
            if now >= ends_at or now - progress.leased_at > _LEASE_USED_SECONDS:
                return progress.next_at <= now
            progress.next_at += 1 / redrive.rate
            if not self._replay(redrive, item_id, letter_id, progress, stop):
                return False
        return progress.next_at <= time.monotonic()

    def _lease(self, redrive_id: int, progress: _Progress) -> bool:
        now = time.monotonic()
        if now - progress.leased_at < _EXTEND_SECONDS:
            return True
        with connection.cursor() as cursor:
            values: dict[str, Any] = {"id": redrive_id, "owner": self._owner}
            cursor.execute(_LEASE, values)
            is_ours = bool(cursor.rowcount)
        progress.leased_at = now if is_ours else float("-inf")
        return is_ours

    def _due(self, redrive_id: int) -> list[tuple[int, int]]:
        with connection.cursor() as cursor:
            cursor.execute(_DUE, [redrive_id])
            return list(cursor.fetchall())

    def _end(self, redrive_id: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_END, [redrive_id])
            if cursor.rowcount:
                logger.info("redrive %d is done", redrive_id)

    def _replay(self, redrive: _Running, item_id: int, letter_id: int, progress: _Progress, stop: StopFlag) -> bool:
        """Replay one letter; returns whether the next one may follow at once."""

        is_recorded = False

        def record(replayed: Replayed) -> None:
            nonlocal is_recorded
            try:
                _finish(item_id, replayed)
                is_recorded = True
            except Exception as error:
                # The effect that the letter has had stays: ``_finish`` has a savepoint.
                if _is_outage(error):
                    raise

        try:
            replayed = replay_letter(letter_id, stop, record)
        except ReplayInterrupted:
            return False
        except CallPostponed as error:
            # Of this letter only: the others go on.
            self._postpone(item_id, letter_id, error, progress)
            return True
        except Exception as error:
            if _is_outage(error):
                raise
            if is_transient(error):
                self._back_off(redrive, item_id, error, progress)
                return False
            logger.exception("redrive %d: replaying letter %d failed", redrive.id, letter_id)
            replayed = Replayed(letter_id, ReplayResult.FAILED, f"{type(error).__name__}: {first_line(error)}")
            is_recorded = False
        if not is_recorded:
            # An error of it stops the redrive; the letter, if it is closed, has no effect again.
            progress.unwritten[item_id] = replayed
            _write_results(progress.unwritten)
        progress.failures = 0
        progress.postponed.pop(item_id, None)
        return True

    def _postpone(self, item_id: int, letter_id: int, error: CallPostponed, progress: _Progress) -> None:
        seconds = error.seconds
        # A provider says itself when it takes the call.
        if isinstance(error, ReplayPostponed):
            seconds = min(seconds * 2 ** progress.postponed[item_id], max(seconds, LONGEST_POSTPONED_SECONDS))
            progress.postponed[item_id] = min(progress.postponed[item_id] + 1, 10)
        detail = first_line(error)
        _delay(item_id, seconds, detail, f"letter {letter_id}: {detail}")

    def _back_off(self, redrive: _Running, item_id: int, error: Exception, progress: _Progress) -> None:
        """Wait for a service. Another letter is tried next: a lock may be of this one only."""
        seconds = min(_FIRST_BACKOFF_SECONDS * 2**progress.failures, _LONGEST_BACKOFF_SECONDS)
        progress.failures = min(progress.failures + 1, 10)
        progress.next_at = time.monotonic() + seconds
        detail = first_line(error)
        _delay(item_id, _RETRY_SECONDS, detail, detail)
        logger.warning("redrive %d waits %.1f s: %s", redrive.id, seconds, detail)


def _is_outage(error: BaseException) -> bool:
    """Whether PostgreSQL is away: for all redrives."""
    return is_database_outage(error) and not is_contention(error)


def _pause(redrive_id: int, fault: str) -> bool:
    """Pause a redrive; returns False while another session has locked its row, or if it does not run any more."""
    with connection.cursor() as cursor:
        cursor.execute(_PAUSE, {"id": redrive_id, "why": f"{STOPPED_BY}{fault}"})
        return bool(cursor.rowcount)


def _delay(item_id: int, seconds: float, detail: str, waits_for: str) -> None:
    values: dict[str, Any] = {"item": item_id, "seconds": seconds, "detail": detail, "waits_for": waits_for}
    with _short_lock_waits(), connection.cursor() as cursor:
        cursor.execute(_DELAY, values)


def _finish(item_id: int, replayed: Replayed) -> None:
    with _short_lock_waits(), connection.cursor() as cursor:
        cursor.execute(_FINISH, {"item": item_id, "result": str(replayed.result), "detail": replayed.detail})


def _write_results(unwritten: dict[int, Replayed]) -> None:
    """Write results of replays and remove them from ``unwritten``."""
    for item_id, replayed in list(unwritten.items()):
        _finish(item_id, replayed)
        del unwritten[item_id]


@contextmanager
def _short_lock_waits() -> Iterator[None]:
    """A transaction, or a savepoint of one, that does not wait for the row of a redrive, or of an item, for long."""
    with transaction.atomic():
        limit_lock_waits(_LOCK_SECONDS)
        yield


def _store_preview(redrive_id: int, preview: Preview) -> None:
    with _short_lock_waits(), connection.cursor() as cursor:
        cursor.execute(_PREVIEWED, {"id": redrive_id, "preview": msgspec.json.encode(preview).decode()})


class RedriveThread(threading.Thread):
    """Executes the redrives of the service until the process stops."""

    def __init__(self, stop: StopFlag) -> None:
        super().__init__(name="redrives", daemon=True)
        self._stop_flag = stop
        self._executor = RedriveExecutor()
        self._log_limit = LogLimit(60.0)

    def run(self) -> None:
        """Execute until the process stops; an error is logged and ends nothing."""
        try:
            while not self._stop_flag:
                is_busy = False
                try:
                    is_busy = self._executor.step(self._stop_flag)
                except Exception as error:
                    if self._log_limit.due("error"):
                        logger.warning("redrives wait, nothing is lost: %s", first_line(error))
                    drop_connection()
                if not is_busy:
                    self._stop_flag.wait(POLL_SECONDS)
            self._executor.release_if_possible()
        finally:
            drop_connection()

    def end(self) -> None:
        """Wait a moment for the thread, once the process was asked to stop."""
        self.join(END_SECONDS)


@contextmanager
def redrive_thread(stop: StopFlag) -> Iterator[None]:
    """Execute redrives in a thread until ``stop``; the block works meanwhile."""
    thread = RedriveThread(stop)
    thread.start()
    try:
        yield
    finally:
        thread.end()
