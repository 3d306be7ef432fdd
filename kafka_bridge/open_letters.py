"""The open dead letters as every count of them reads them: the newest, by a partial index, up to a limit."""

from __future__ import annotations

# Their number is bounded only by what was sent: of more the newest are counted.
MOST_COUNTED = 10_000


def open_letters_sql(limit: str = str(MOST_COUNTED + 1)) -> str:
    """Return a query of the newest open dead letters, at most ``limit``; by default one more than are counted."""
    return f"""
        SELECT consumer_group, error_class, created_at FROM kafka_bridge_deadletter
        WHERE closed_at IS NULL ORDER BY id DESC LIMIT {limit}
    """
