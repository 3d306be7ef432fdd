"""Sessions of PostgreSQL: limits of statements, lock waits and commits, set inside each transaction; bytea as bytes.

``SET LOCAL`` is sent in the same message as the first statement of a transaction, or as a statement outside
transactions: it costs no round trip and leaves nothing on the session. A pooler in transaction mode refuses startup
options, and shares the effects of a plain ``SET`` with other clients.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import psycopg2
from psycopg2 import extensions, sql

from common.processes.outages import OutcomeUnknown, is_rolled_back

# A process that hangs in its transaction, or whose machine is lost, must not keep the lock of a coupon row.
IDLE_IN_TRANSACTION_SECONDS = 60
# For the web process only: a slow statement delays its client, and the requests queued behind it.
STATEMENT_SECONDS = 5.0
LOCK_SECONDS = 2.0
# PostgreSQL has no timeout for a commit, which may wait for a standby: the client closes its side of the socket.
COMMIT_SECONDS = 5.0

_POLL_SECONDS = 0.2


def _set_local(**milliseconds: float) -> str:
    return "".join(f"SET LOCAL {name} = {round(value)}; " for name, value in milliseconds.items())


IDLE_LIMIT = _set_local(idle_in_transaction_session_timeout=IDLE_IN_TRANSACTION_SECONDS * 1000)
STATEMENT_LIMITS = _set_local(statement_timeout=STATEMENT_SECONDS * 1000, lock_timeout=LOCK_SECONDS * 1000)


def limit_statements() -> None:
    """Limit every statement, lock wait and commit of sessions opened from now on. Must be called after a fork."""
    global _watchdog
    _watchdog = Watchdog()
    _watchdog.start()


def _bytes(value: str | None, cursor: Any) -> bytes | None:
    if value is None:
        return None
    if value.startswith("\\x"):
        return bytes.fromhex(value[2:])
    # A server whose bytea_output is `escape`.
    return bytes(psycopg2.BINARY(value, cursor))


# The driver's own decoding takes ten times as long: most of the time in which the relay reads a row.
_BYTEA = extensions.new_type(psycopg2.BINARY.values, "BYTEA", _bytes)


class Connection(extensions.connection):  # type: ignore[misc]
    """A session that prepends limits to its statements; an unconfirmed commit raises OutcomeUnknown.

    A bytea is read as bytes, as psycopg 3 does.

    ``before_transaction`` is prepended to the first statement of a transaction, ``before_statement`` to a statement
    outside transactions: SET LOCAL commands, or nothing. ``longest_call_seconds`` limits one call other than a commit,
    if the process limits its statements: the statement, and outside transactions its implicit commit.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        extensions.register_type(_BYTEA, self)
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
    """Prepend the limits to the first statement of a transaction, and to each statement outside transactions."""

    connection: Connection

    def execute(self, query: str | bytes | sql.Composable, vars: Any = None) -> None:
        connection = self.connection
        if connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            limits = connection.before_statement if connection.autocommit else connection.before_transaction
            if limits and self.name is None:
                query = limits + _text(query, self)
            elif limits and not connection.autocommit:
                # A named cursor prepends DECLARE to its query, so the limits need a separate statement.
                with connection.cursor() as first:
                    first.execute("SELECT")
        _watched(connection, connection.longest_call_seconds, super().execute, query, vars)

    def copy_expert(self, sql: str, file: IO[bytes], size: int = 8192) -> None:
        if self.connection.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            # COPY cannot be sent in one message with the limits.
            self.execute("SELECT")
        _watched(self.connection, self.connection.longest_call_seconds, super().copy_expert, sql, file, size)


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
    """Shut down the socket of a session whose call is overdue: the waiting thread gets an OperationalError.

    It covers what PostgreSQL cannot limit: a waiting commit, and a server that does not answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Thread id -> (time.monotonic() when its call is overdue, socket descriptor).
        self._calls: dict[int, tuple[float, int]] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="database-watchdog", daemon=True).start()

    def enter(self, descriptor: int, seconds: float) -> None:
        """Register the call that this thread begins."""
        with self._lock:
            self._calls[threading.get_ident()] = (time.monotonic() + seconds, descriptor)

    def leave(self) -> None:
        """Remove this thread's call; its socket, which may be closed from now on, is no longer touched."""
        with self._lock:
            del self._calls[threading.get_ident()]

    def check(self) -> None:
        """Shut down the sockets of overdue calls."""
        with self._lock:
            now = time.monotonic()
            for overdue_at, descriptor in self._calls.values():
                if overdue_at <= now:
                    _shut_down(descriptor)

    def _run(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            self.check()


def _shut_down(descriptor: int) -> None:
    # A duplicate: libpq closes the descriptor itself.
    with socket.socket(fileno=os.dup(descriptor)) as line:
        try:
            line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # The server has already closed the connection.


_watchdog: Watchdog | None = None
