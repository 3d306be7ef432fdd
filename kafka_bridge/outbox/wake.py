"""Waking the relay: NOTIFY after a commit that wrote outbox rows, so that they need not wait for the relay's next poll.

Best effort: a lost NOTIFY costs at most the relay's pause between two polls. It is not part of the transaction that
writes the rows: PostgreSQL commits transactions with a NOTIFY one after the other.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from django.db import connection, transaction

from common.processes.lifecycle import first_line

logger = logging.getLogger(__name__)

# Channels are per database.
CHANNEL = "outbox"
# Of its own: a relay that is only to look at held rows must not take it for a commit, nor lose it behind one.
HELD_CHANNEL = "outbox_held"
_PERIOD_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 5.0
_END_SECONDS = 2.0

# SET LOCAL holds for this message alone, so that it works behind a transaction pooler. A wake-up needs no flush.
_NOTIFY = f"SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}"

# Set if rows were committed since the last NOTIFY. Without a RelayWaker in the process it has no effect.
_committed = threading.Event()


def wake_relay_on_commit() -> None:
    """Wake the relay after the commit of the current transaction or savepoint; a rollback wakes nothing."""
    transaction.on_commit(_committed.set, robust=True)


def look_at_held_rows() -> None:
    """Have relays look at holds and held rows as soon as the caller's transaction is committed.

    Without it they look once a second. For what operators do: a commit with a NOTIFY waits for others with one.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {HELD_CHANNEL}")


class RelayWaker:
    """Sends a NOTIFY at once after a commit, and one more 20 ms later if there were further commits meanwhile.

    Runs in a thread with a session of its own, which it opens at the first commit. It logs an outage once and tries
    again after at most 5 s.
    """

    def __init__(self) -> None:
        self._session: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay-waker", daemon=True)

    def start(self) -> None:
        """Start the thread, which runs until ``end``. Call it after any fork."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread, and close its session unless it hangs for two seconds."""
        self._ended.set()
        _committed.set()
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        pause = _PERIOD_SECONDS
        while True:
            _committed.wait()
            # Before the NOTIFY: a commit from here on gets one of its own.
            _committed.clear()
            if self._ended.is_set():
                break
            try:
                self._notify()
                pause = _PERIOD_SECONDS
            except Exception as error:
                if pause == _PERIOD_SECONDS:
                    logger.warning("relay not woken after a commit, it polls: %s", first_line(error))
                self._close()
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                _committed.set()
            self._ended.wait(pause)
        self._close()

    def _notify(self) -> None:
        if self._session is None:
            options = connection.get_connection_params()
            name = f"{options.get('application_name', '')} wake".strip()
            self._session = connection.get_new_connection({**options, "application_name": name})
            self._session.autocommit = True
        with self._session.cursor() as cursor:
            cursor.execute(_NOTIFY)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
