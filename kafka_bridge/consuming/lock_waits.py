"""Waits of a batch for the locks of other sessions: which session most likely holds the lock."""

from __future__ import annotations

from django.db import connection
from django.db.utils import Error

from common.postgres import lock_limits
from common.processes.lifecycle import drop_connection, first_line
from common.processes.outages import is_over_limit

# Modes but AccessShareLock, which readers hold. A prepared transaction has no session; the state of other
# users' sessions is NULL without pg_read_all_stats.
_OLDEST_HOLDER = """
    SELECT coalesce(
        format('session %%s (%%s, %%s) has been in its transaction for %%s s', l.pid, nullif(a.application_name, ''),
               coalesce(a.state, 'state unknown'), round(extract(epoch FROM statement_timestamp() - a.xact_start))),
        'a prepared transaction is open: see pg_prepared_xacts')
    FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock'
      AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (a.pid IS NULL OR a.xact_start IS NULL OR a.xact_start < statement_timestamp() - %s * interval '1 second')
    ORDER BY a.xact_start NULLS LAST
    LIMIT 1
"""


def cause_of(error: BaseException) -> str:
    """Return the first line of ``error``; of a lock wait past its limit also what was locked, and likely by whom.

    PostgreSQL does not say who held the lock, so this names the oldest transaction with locks.
    """
    line = first_line(error)
    if not is_over_limit(error):
        return line
    context = getattr(getattr(error.__cause__, "diag", None), "context", None) or ""
    return "; ".join(filter(None, (line, context.partition("\n")[0], _oldest_holder())))


def _oldest_holder() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute(_OLDEST_HOLDER, [lock_limits.LOCK_SECONDS])
            (found,) = cursor.fetchone() or ("",)
    except Error as error:
        drop_connection()
        return f"its holder is unknown: {first_line(error)}"
    return str(found)
