"""Keeps a request from starting on a database connection whose server has gone."""

from __future__ import annotations

import select
from typing import Any

import structlog
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


def _hung_up(connection: BaseDatabaseWrapper) -> bool:
    # An idle session has nothing to read: what is there is the server's farewell, or the end of the stream.
    raw = connection.connection
    if raw is None or connection.in_atomic_block:
        return False
    if raw.closed:
        return True
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def begin_request(**_signal: Any) -> None:
    """Receiver of ``request_started``: fresh log context, and no connection that the server has closed.

    Looking at the socket costs a microsecond where ``CONN_HEALTH_CHECKS`` costs a round trip; after a restart
    of PostgreSQL only the requests under way fail.
    """
    structlog.contextvars.clear_contextvars()
    for connection in connections.all(initialized_only=True):
        if _hung_up(connection):
            connection.close()
