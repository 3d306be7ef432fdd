"""The limit of a transaction's waits for locks."""

from __future__ import annotations

from django.db import connection

# As long as the web process waits. PostgreSQL looks for deadlocks after one second.
LOCK_SECONDS = 2.0


def limit_lock_waits(seconds: float = LOCK_SECONDS) -> None:
    """Let each wait for a lock in this transaction fail after ``seconds``, with an error that is transient."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {round(seconds * 1000)}")
