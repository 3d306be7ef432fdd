"""Limits of statements, lock waits and commits, set inside each transaction.

``SET LOCAL`` travels in the message of a transaction's first statement, or of a statement outside a transaction: no
round trip of its own, and nothing that stays on the session. A pooler in transaction mode refuses startup options, and
hands what ``SET`` leaves on a session to other clients.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions, sql

from common.processes.outages import OutcomeUnknown, is_rolled_back

# A process that hangs in its transaction, or whose machine is gone, must not keep a coupon's row for ever.
IDLE_IN_TRANSACTION_SECONDS = 60
# For the web process only: its clients wait, and those of other coupons wait behind them.
STATEMENT_SECONDS = 5.0
LOCK_SECONDS = 2.0
# PostgreSQL limits no commit: it may wait for a standby. The client's side of the socket does.
COMMIT_SECONDS = 5.0

_LOOK_SECONDS = 0.2


def _set_local(**milliseconds: float) -> str:
    return "".join(f"SET LOCAL {name} = {round(value)}; " for name, value in milliseconds.items())


IDLE_LIMIT = _set_local(idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_SECONDS * 1000)
STATEMENT_LIMITS = _set_local(statement_timeout=STATEMENT_SECONDS * 1000, lock_timeout=LOCK_SECONDS * 1000)


def limit_statements() -> None:
    """Limit every statement, lock wait and commit of sessions that begin from now on. Call it after any fork."""
    global _watchdog
    _watchdog = Watchdog()
    _watchdog.start()


class Connection(extensions.connection):  # type: ignore[misc]
    """A session that sets limits with its statements; a commit that is not confirmed raises OutcomeUnknown.

    ``before_transaction`` is put before the first statement of a transaction, ``before_statement`` before one outside
    transactions: SET LOCAL commands, or nothing. ``longest_call_seconds`` is what one call may take, commits aside, if
    the process limits its statements: the statement itself, and outside transactions its commit.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.before_statement = "" if _watchdog is None else STATEMENT_LIMITS
        self.before_transaction = IDLE_LIMIT + self.before_statement
        self.longest_call_seconds = STATEMENT_SECONDS + COMMIT_SECONDS

    def commit(self) -> None:
        try:
            _watched(self, COMMIT_SECONDS, super().commit)
        except psycopg2.OperationalError as error:
            if is_rolled_back(error):
                raise
            raise OutcomeUnknown(f"the commit was not confirmed: {str(error).strip()}") from error

    def rollback(self) -> None:
        _watched(self, self.longest_call_seconds, super().rollback)


class Cursor(extensions.cursor):  # type: ignore[misc]
    """Puts the limits before the first statement of a transaction, and before each statement outside one."""

    connection: Connection

    def execute(self, query: str | bytes | sql.Composable, vars: Any = None) -> None:
        connection = self.connection
        if connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            limits = connection.before_statement if connection.autocommit else connection.before_transaction
            if limits and self.name is None:
                query = limits + _text(query, self)
            elif limits and not connection.autocommit:
                # DECLARE is put before the query of a named cursor, so the limits take a statement of their own.
                with connection.cursor() as first:
                    first.execute("SELECT")
        _watched(connection, connection.longest_call_seconds, super().execute, query, vars)


def _text(query: str | bytes | sql.Composable, cursor: Cursor) -> str:
    if isinstance(query, sql.Composable):
        return str(query.as_string(cursor))
    return query.decode() if isinstance(query, bytes) else query


def _watched(connection: Connection, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
    watchdog = _watchdog
    if watchdog is None or connection.closed:
        call(*arguments)
        return
    watchdog.enter(connection.fileno(), seconds)
    try:
        call(*arguments)
    finally:
        watchdog.leave()


class Watchdog:
    """Shuts down the socket of a session whose call is overdue: the thread that waits there gets an OperationalError.

    It covers what PostgreSQL cannot limit: a commit that waits, and a server that does not answer at all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By thread: when its call is overdue, on which socket.
        self._calls: dict[int, tuple[float, int]] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="database-watchdog", daemon=True).start()

    def enter(self, descriptor: int, seconds: float) -> None:
        """This thread begins a call."""
        with self._lock:
            self._calls[threading.get_ident()] = (time.monotonic() + seconds, descriptor)

    def leave(self) -> None:
        """This thread's call has ended. Its socket, which may be closed from now on, is not touched any more."""
        with self._lock:
            del self._calls[threading.get_ident()]

    def look(self) -> None:
        """End what is overdue."""
        with self._lock:
            now = time.monotonic()
            for overdue_at, descriptor in self._calls.values():
                if overdue_at <= now:
                    _shut_down(descriptor)

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            self.look()


def _shut_down(descriptor: int) -> None:
    # The descriptor stays libpq's own to close.
    with socket.socket(fileno=os.dup(descriptor)) as line:
        try:
            line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # The server has hung up by itself.


_watchdog: Watchdog | None = None
