"""Sessions of PostgreSQL that hold or wait for the row of a coupon, and what they wait for."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from django.db import connection

_MOST_SESSIONS = 200
_LONGEST_QUERY = 300
# A transaction of ours that locks a coupon lasts milliseconds.
LONG_SECONDS = 5.0

# A session waits for a row by waiting for the transaction that locked it (transactionid), while it holds the row's
# place in line (tuple), which names the row. A lock of a row by itself is only in the row: its holder shows by its lock
# of the table. pg_blocking_pids halts the lock manager for a moment, so it is asked for waiting sessions only.
_SESSIONS = f"""
    WITH lock AS MATERIALIZED (
        SELECT pid, locktype, mode, granted, page, tuple, relation
        FROM pg_locks
        WHERE pid IS NOT NULL AND locktype IN ('relation', 'tuple')
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND relation = 'coupons_coupon'::regclass
    ), row_lock AS (
        SELECT lock.pid, min(coupon.coupon_type) AS coupon_type
        FROM lock JOIN coupons_coupon AS coupon ON coupon.ctid = ('(' || lock.page || ',' || lock.tuple || ')')::tid
        WHERE lock.locktype = 'tuple'
        GROUP BY lock.pid
    ), waiting AS MATERIALIZED (
        SELECT pid, pg_blocking_pids(pid) AS blocked_by FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
    )
    SELECT activity.pid, activity.application_name, coalesce(host(activity.client_addr), ''),
           coalesce(activity.state, ''), row_lock.coupon_type, coalesce(waiting.blocked_by, '{{}}'),
           ARRAY(SELECT other.pid FROM waiting AS other WHERE activity.pid = ANY (other.blocked_by) ORDER BY 1),
           extract(epoch FROM clock_timestamp() - activity.xact_start)::float, activity.query_start,
           left(activity.query, {_LONGEST_QUERY})
    FROM pg_stat_activity AS activity
    LEFT JOIN row_lock ON row_lock.pid = activity.pid LEFT JOIN waiting ON waiting.pid = activity.pid
    WHERE activity.datname = current_database() AND activity.pid <> pg_backend_pid() AND (
        waiting.pid IS NOT NULL
        OR activity.pid IN (SELECT unnest(blocked_by) FROM waiting)
        OR activity.pid IN (
            SELECT pid FROM lock WHERE locktype = 'relation' AND granted AND mode <> 'AccessShareLock'
        )
    )
    ORDER BY activity.xact_start NULLS LAST LIMIT {_MOST_SESSIONS}
"""
_PREPARED = """
    SELECT gid, owner, prepared, extract(epoch FROM clock_timestamp() - prepared)::float
    FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 50
"""


class Session(NamedTuple):
    """A session. ``coupon_type``: the coupon whose row it waits for, None if unknown; ``age_seconds``: of its
    transaction, None outside one; ``blocked_by``: pids, with 0 for a prepared transaction.
    """

    pid: int
    application: str
    address: str
    state: str
    coupon_type: str | None
    blocked_by: list[int]
    blocks: list[int]
    age_seconds: float | None
    query_started_at: datetime | None
    query: str

    @property
    def role(self) -> str:
        """What the session does to others: ``blocks``, ``waits``, or ``holds`` locks that delay no session."""
        if self.blocks:
            return "blocks"
        return "waits" if self.blocked_by else "holds"

    @property
    def remedy(self) -> str:
        """The statement that frees the rows: for a session that blocks others and waits for none, or lasts long."""
        if self.blocked_by or not (self.blocks or (self.age_seconds or 0) > LONG_SECONDS):
            return ""
        return f"SELECT pg_terminate_backend({self.pid});"


class PreparedTransaction(NamedTuple):
    """A prepared transaction: it keeps its locks without a session, also over a restart."""

    gid: str
    owner: str
    prepared_at: datetime
    age_seconds: float

    @property
    def remedy(self) -> str:
        quoted = self.gid.replace("'", "''")
        return f"ROLLBACK PREPARED '{quoted}';"


def sessions() -> list[Session]:
    """Return the sessions that hold or wait for rows of coupons, or wait for any lock, and those that block them.

    The oldest transaction comes first; at most 200.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SESSIONS)
        found = [Session(*row) for row in cursor.fetchall()]
    # The session that blocks holds the row that the other one waits for.
    waits_for = {session.pid: session.coupon_type for session in found if session.coupon_type}
    return [
        session
        if session.coupon_type
        else session._replace(coupon_type=next((waits_for[pid] for pid in session.blocks if pid in waits_for), None))
        for session in found
    ]


def prepared_transactions() -> list[PreparedTransaction]:
    """Return the prepared transactions of this database, the oldest first; at most 50."""
    with connection.cursor() as cursor:
        cursor.execute(_PREPARED)
        return [PreparedTransaction(*row) for row in cursor.fetchall()]
