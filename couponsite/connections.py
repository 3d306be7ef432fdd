"""Close dead database connections before a request uses them."""

from __future__ import annotations

import select
from typing import Any

import structlog
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


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


def begin_request(**_signal: Any) -> None:
    """Receiver of ``request_started``: clear the log context, and close connections that the server has closed.

    Polling the socket costs a microsecond, ``CONN_HEALTH_CHECKS`` a round trip; after a restart of PostgreSQL only the
    requests in progress fail.
    """
    structlog.contextvars.clear_contextvars()
    for connection in connections.all(initialized_only=True):
        if _is_closed_by_server(connection):
            connection.close()
