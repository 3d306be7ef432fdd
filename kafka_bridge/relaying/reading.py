"""Reads the outbox rows that are not sent: those in the gaps and those above the last sent one, from one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connection

from common.postgres import arrays

from .publisher import COLUMNS, OutboxRecord
from .unsent_ids import UnsentIds

# Rows of 900 kB each fill the memory long before there are 2,000.
BATCH_BYTES = 16 * 1024 * 1024

# Until ANALYZE has seen a backlog, PostgreSQL takes it for a few rows, and would sort all of it in every read.
IN_INDEX_ORDER = "SET LOCAL enable_bitmapscan = off; "
# The gaps and the rows above `sent_through`, from one snapshot. Of rows that another relay publishes only the id.
_READ = """
    SELECT id, {columns} FROM (
        SELECT *, sum(size) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS total FROM (
            SELECT *, {own} AS own, CASE WHEN {own} THEN coalesce(octet_length(payload), 0) ELSE 0 END AS size FROM (
                {gaps}
                (SELECT * FROM kafka_bridge_outboxmessage
                 WHERE id > %(sent_through)s AND published_at IS NULL ORDER BY id LIMIT %(limit)s)
            ) AS unsent
            ORDER BY id LIMIT %(limit)s
        ) AS sized
    ) AS summed
    WHERE total - size < %(bytes)s
    ORDER BY id
"""
_GAPS = """
    (SELECT message.* FROM unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) AS gap (first, last)
     CROSS JOIN LATERAL (
         SELECT * FROM kafka_bridge_outboxmessage
         WHERE id BETWEEN gap.first AND gap.last AND published_at IS NULL ORDER BY id LIMIT %(limit)s
     ) AS message)
    UNION ALL
"""


class UnsentRows(NamedTuple):
    """What one read found, in id order.

    ``rows`` are of the relay's own shards, ``ids`` of all. ``settled`` is the settled mark from before the read.
    """

    rows: list[OutboxRecord]
    ids: list[int]
    settled: int

    @property
    def complete_through(self) -> int | None:
        """The id up to which the read missed nothing; None if it saw everything.

        Whether the number of rows or their bytes ended a read is not known: only one that finds none saw everything.
        """
        return self.ids[-1] if self.ids else None


def read_unsent(unsent: UnsentIds, shards: Sequence[int], *, holds_all: bool, limit: int, settled: int) -> UnsentRows:
    """Read up to ``limit`` rows of ``unsent``, with payloads of about ``BATCH_BYTES`` at most.

    ``holds_all``: whether ``shards`` are all shards. Raises what the database raises.
    """
    values: dict[str, Any] = {
        "sent_through": unsent.sent_through,
        "firsts": arrays.numbers([first for first, _ in unsent.gaps]),
        "lasts": arrays.numbers([last for _, last in unsent.gaps]),
        "shards": arrays.numbers(shards),
        "limit": limit,
        "bytes": BATCH_BYTES,
    }
    with connection.cursor() as cursor:
        cursor.execute(IN_INDEX_ORDER + read_sql(has_gaps=bool(unsent.gaps), holds_all=holds_all), values)
        found = cursor.fetchall()
    rows = [OutboxRecord(*row[1:]) for row in found if row[1] is not None]
    return UnsentRows(rows, [row[0] for row in found], settled)


def read_sql(*, has_gaps: bool, holds_all: bool) -> str:
    """Return the query for unsent rows: id, then the columns of a record, null for rows of other relays."""
    columns = COLUMNS if holds_all else [f"CASE WHEN own THEN {column} END" for column in COLUMNS]
    own = "true" if holds_all else "shard = ANY(%(shards)s::int[])"
    return _READ.format(columns=", ".join(columns), own=own, gaps=_GAPS if has_gaps else "")
