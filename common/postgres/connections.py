"""Database connections of a thread between its units of work: dead ones are closed, live ones stay open."""

from __future__ import annotations

import select

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


def drop_connections() -> None:
    """Close this thread's database connections outside transactions; the next query opens a new one."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def close_dead_connections() -> None:
    """Close this thread's connections that the server has closed.

    Polling the socket costs a microsecond, ``CONN_HEALTH_CHECKS`` a round trip; after a restart of PostgreSQL only the
    work in progress fails.
    """
    for connection in connections.all(initialized_only=True):
        if _is_closed_by_server(connection):
            connection.close()


def _is_closed_by_server(connection: BaseDatabaseWrapper) -> bool:
    # An idle connection is readable only after the server has closed it: an error message, or the end of the stream.
    raw = connection.connection
    if raw is None or connection.in_atomic_block:
        return False
    if raw.closed:
        return True
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(0))
