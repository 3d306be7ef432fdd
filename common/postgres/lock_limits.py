"""The limit of a transaction's waits for locks."""

from __future__ import annotations

from django.db import connection


def limit_lock_waits(seconds: float) -> None:
    """Let each wait for a lock in this transaction fail after ``seconds``, with an error that is transient."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {round(seconds * 1000)}")
