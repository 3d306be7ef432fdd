"""Database connections after an outage."""

from __future__ import annotations

from django.db import connections


def drop_connections() -> None:
    """Close this thread's database connections outside transactions; the next query opens a new one."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
