"""Which outbox rows are published: the one definition that everything outside the relay uses.

A row is published if it is not held and either its id is at or under ``sent_through`` of its shard and in none of the
gaps, or ``published_at`` is set: by a relay of the version before, or because another transport carries the row.
"""

from __future__ import annotations

from django.db import connection

_TABLE = "kafka_bridge_outboxmessage"

# Rows that wait for their relay. Reads above the least `sent_through`, and in the gaps, so published rows cost nothing.
_WAITING = """
    (SELECT message.id, message.created_at
     FROM {rows} AS message LEFT JOIN kafka_bridge_relaylease AS lease USING (shard)
     WHERE message.published_at IS NULL AND message.id > coalesce(lease.sent_through, 0)
       AND message.id > (SELECT coalesce(min(sent_through), 0) FROM kafka_bridge_relaylease)
     ORDER BY message.id {order} LIMIT {limit})
    UNION ALL
    (SELECT message.id, message.created_at
     FROM (SELECT unnest(range_agg(gaps)) AS ids FROM kafka_bridge_relaylease) AS gap
     CROSS JOIN LATERAL (
         SELECT id, shard, created_at FROM kafka_bridge_outboxmessage
         WHERE id >= lower(gap.ids) AND id < upper(gap.ids) AND published_at IS NULL ORDER BY id {order} LIMIT {limit}
     ) AS message
     JOIN kafka_bridge_relaylease AS lease ON lease.shard = message.shard AND message.id <@ lease.gaps
     ORDER BY message.id {order} LIMIT {limit})
"""
# The first rows above the least `sent_through`, which may be published by the relays of other shards.
_FIRST_ROWS = """
    (SELECT id, shard, created_at, published_at FROM kafka_bridge_outboxmessage
     WHERE published_at IS NULL AND id > (SELECT coalesce(min(sent_through), 0) FROM kafka_bridge_relaylease)
     ORDER BY id LIMIT {limit})
"""
_HELD = """
    (SELECT message.id, message.created_at
     FROM kafka_bridge_heldmessage AS held JOIN kafka_bridge_outboxmessage AS message ON message.id = held.message_id
     ORDER BY held.message_id {order} LIMIT {limit})
"""


def waiting_sql(limit: str = "ALL", *, newest: bool = False) -> str:
    """Return a query of the rows that wait for a relay (id, created_at), held rows apart.

    At most ``limit`` of those in gaps and of the others are read, the oldest or the ``newest``.
    """
    return _WAITING.format(rows=_TABLE, limit=limit, order="DESC" if newest else "")


def first_rows_waiting_sql(limit: str) -> str:
    """Return a query like ``waiting_sql`` that finds what waits among the first ``limit`` rows that may wait.

    So it reads a bounded number of rows also while one shard is far behind the others.
    """
    return _WAITING.format(rows=first_rows_sql(limit), limit=limit, order="")


def first_rows_sql(limit: str) -> str:
    """Return the rows that ``first_rows_waiting_sql`` looks at, as a subquery."""
    return _FIRST_ROWS.format(limit=limit)


def unpublished_sql(limit: str = "ALL", *, newest: bool = False) -> str:
    """Return a query of the unpublished rows (id, created_at): those of ``waiting_sql`` and the held ones."""
    held = _HELD.format(limit=limit, order="DESC" if newest else "")
    return f"{waiting_sql(limit, newest=newest)} UNION ALL {held}"


def is_published_sql(alias: str = _TABLE) -> str:
    """Return a condition: whether the row of the outbox under ``alias`` is published."""
    return f"""(
        NOT EXISTS (SELECT FROM kafka_bridge_heldmessage AS held WHERE held.message_id = {alias}.id)
        AND ({alias}.published_at IS NOT NULL OR {is_passed_sql("sent_through", alias)})
    )"""


def is_passed_sql(mark: str, alias: str = _TABLE) -> str:
    """Return a condition: whether the row is at or under ``mark``, "position" or "sent_through", and in no gap."""
    return f"""EXISTS (
        SELECT FROM kafka_bridge_relaylease AS lease
        WHERE lease.shard = {alias}.shard AND {alias}.id <= lease.{mark} AND NOT {alias}.id <@ lease.gaps
    )"""


def anything_unpublished() -> bool:
    """Return whether any row of any shard is unpublished."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS ({unpublished_sql('1')})")
        (found,) = cursor.fetchone() or (False,)
    return bool(found)
