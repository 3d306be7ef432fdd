"""Sharing the outbox among relays: a lease per shard, by the database's clock.

Leases serve speed alone. Two relays on one shard only send copies of the same ids, see ``relay``.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from django.db import connection, transaction

from common.processes.lifecycle import first_line

from ..models import SHARDS

logger = logging.getLogger(__name__)

LEASE_SECONDS = 10
_RENEW_SECONDS = 2.0

_ANNOUNCE = """
    INSERT INTO kafka_bridge_relaymember (owner, backend_pid, backend_started_at, expires_at)
    SELECT %(owner)s, pid, backend_start, statement_timestamp() + %(lease)s * interval '1 second'
    FROM pg_stat_activity WHERE pid = pg_backend_pid()
    ON CONFLICT (owner) DO UPDATE SET expires_at = EXCLUDED.expires_at, backend_pid = EXCLUDED.backend_pid,
                                      backend_started_at = EXCLUDED.backend_started_at
"""
# The session of a killed process ends with its socket: nobody has to wait for its leases to run out.
_FORGET_DEAD = """
    DELETE FROM kafka_bridge_relaymember AS member
    WHERE expires_at < statement_timestamp() OR NOT EXISTS (
        SELECT FROM pg_stat_activity AS session
        WHERE pid = member.backend_pid
          -- Another role's start is hidden: then the pid has to do.
          AND coalesce(session.backend_start = member.backend_started_at, true)
    )
"""
_FAIR_SHARE = "SELECT ceil(%(shards)s::numeric / count(*))::int FROM kafka_bridge_relaymember"
# Keeps the lowest shards up to the fair share and gives the rest back.
_RENEW = """
    WITH mine AS (
        SELECT shard, row_number() OVER (ORDER BY shard) <= %(share)s AS keep
        FROM kafka_bridge_relaylease WHERE owner = %(owner)s
    )
    UPDATE kafka_bridge_relaylease AS lease
    SET owner = CASE WHEN mine.keep THEN %(owner)s::uuid END,
        expires_at = CASE WHEN mine.keep THEN statement_timestamp() + %(lease)s * interval '1 second' END
    FROM mine WHERE lease.shard = mine.shard AND lease.owner = %(owner)s
    RETURNING lease.shard, mine.keep
"""
_ENSURE_SHARDS = """
    INSERT INTO kafka_bridge_relaylease (shard) SELECT generate_series(0, %(shards)s - 1) ON CONFLICT DO NOTHING
"""
_CLAIM = """
    UPDATE kafka_bridge_relaylease
    SET owner = %(owner)s, expires_at = statement_timestamp() + %(lease)s * interval '1 second'
    WHERE shard IN (
        SELECT shard FROM kafka_bridge_relaylease AS relaylease
        WHERE owner IS NULL OR expires_at < statement_timestamp()
           OR NOT EXISTS (SELECT FROM kafka_bridge_relaymember AS member WHERE member.owner = relaylease.owner)
        ORDER BY shard LIMIT %(wanted)s FOR UPDATE SKIP LOCKED
    )
    RETURNING shard
"""


class Leases:
    """The shards that one relay holds: renewed every two seconds, lost with its session, or after ten seconds."""

    def __init__(self) -> None:
        self.owner = uuid.uuid4()
        self._shards: list[int] = []
        self._renewed_at = float("-inf")

    @property
    def holds_all(self) -> bool:
        return len(self._shards) == SHARDS

    def held(self) -> list[int]:
        """The shards to publish now; renews when it is time."""
        self.renew()
        return self._shards

    def renew(self) -> None:
        """Renew, give back what is past the fair share, and claim what is free; at most every two seconds."""
        now = time.monotonic()
        if now - self._renewed_at < _RENEW_SECONDS:
            return
        values: dict[str, Any] = {"owner": self.owner, "lease": LEASE_SECONDS, "shards": SHARDS}
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_ANNOUNCE, values)
            cursor.execute(_FORGET_DEAD)
            cursor.execute(_FAIR_SHARE, values)
            (share,) = cursor.fetchone()
            cursor.execute(_RENEW, {**values, "share": share})
            kept = [shard for shard, keep in cursor.fetchall() if keep]
            if len(kept) < share:
                cursor.execute(_ENSURE_SHARDS, values)
                cursor.execute(_CLAIM, {**values, "wanted": share - len(kept)})
                kept += [shard for (shard,) in cursor.fetchall()]
        self._shards = sorted(kept)
        self._renewed_at = now

    def release(self) -> None:
        """Give everything back at once, so that nobody waits for the leases to run out. Best effort."""
        self._shards = []
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE kafka_bridge_relaylease SET owner = NULL, expires_at = NULL WHERE owner = %s",
                    [self.owner],
                )
                cursor.execute("DELETE FROM kafka_bridge_relaymember WHERE owner = %s", [self.owner])
        except Exception as error:
            logger.warning("leases run out by themselves in %s s: %s", LEASE_SECONDS, first_line(error))
