"""Leases that divide the shards of the outbox among the relays, timed by the database's clock.

Leases only avoid duplicate work. Two relays on one shard only send copies of the same event ids, see ``relay``.
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
# A killed process loses its database session at once, so its leases need not expire first.
_FORGET_DEAD = """
    DELETE FROM kafka_bridge_relaymember AS member
    WHERE expires_at < statement_timestamp() OR NOT EXISTS (
        SELECT FROM pg_stat_activity AS session
        WHERE pid = member.backend_pid
          -- The start time of another role's session is hidden; then only the pid is compared.
          AND coalesce(session.backend_start = member.backend_started_at, true)
    )
"""
_EXTEND = """
    UPDATE kafka_bridge_relaylease SET expires_at = statement_timestamp() + %(lease)s * interval '1 second'
    WHERE owner = %(owner)s
"""
_FAIR_SHARE = "SELECT ceil(%(shards)s::numeric / count(*))::int FROM kafka_bridge_relaymember"
# Keeps the lowest shards up to the fair share and releases the rest.
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
    """The shards that one relay holds. Renewed every 2 s; lost when its database session ends, or after 10 s."""

    def __init__(self) -> None:
        self.owner = uuid.uuid4()
        # How often shards were claimed. After a claim their positions must be read, also if the shards are those of
        # before: another relay may have had them meanwhile.
        self.claims = 0
        self._shards: list[int] = []
        self._known = 0
        self._renewed_at = self._extended_at = float("-inf")

    @property
    def holds_all(self) -> bool:
        return len(self._shards) == SHARDS

    @property
    def is_renewal_due(self) -> bool:
        """Whether ``held`` will renew the leases, and may release shards."""
        return time.monotonic() - self._renewed_at >= _RENEW_SECONDS

    def held(self) -> list[int]:
        """Return the shards to publish now; every 2 s it renews them, releases those beyond the fair share, and claims
        free ones.
        """
        if self.is_renewal_due:
            self._renew()
        return self._shards

    def extend(self) -> None:
        """Renew the leases without releasing a shard, for use while rows are being sent."""
        if time.monotonic() - max(self._renewed_at, self._extended_at) >= _RENEW_SECONDS:
            values: dict[str, Any] = {"owner": self.owner, "lease": LEASE_SECONDS}
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_ANNOUNCE, values)
                cursor.execute(_EXTEND, values)
            self._extended_at = time.monotonic()

    def forget(self) -> None:
        """Read the shards again at the next call of ``held``."""
        self._shards = []
        self._renewed_at = float("-inf")

    def _renew(self) -> None:
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
                claimed = [shard for (shard,) in cursor.fetchall()]
                self.claims += bool(claimed)
                kept += claimed
        if len(kept) != self._known:
            logger.info("this relay publishes %d of the %d shards of the outbox", len(kept), SHARDS)
            self._known = len(kept)
        self._shards = sorted(kept)
        self._renewed_at = time.monotonic()

    def release(self) -> None:
        """Release all shards now, so that other relays need not wait 10 s for them to expire. Best effort."""
        self._shards = []
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE kafka_bridge_relaylease SET owner = NULL, expires_at = NULL WHERE owner = %s",
                    [self.owner],
                )
                cursor.execute("DELETE FROM kafka_bridge_relaymember WHERE owner = %s", [self.owner])
        except Exception as error:
            logger.warning("leases not released, they expire in %s s: %s", LEASE_SECONDS, first_line(error))
