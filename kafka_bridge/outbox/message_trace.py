"""Where a message of the outbox is: waiting, held, or published."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import connection

from common.postgres import arrays

from ..partitioner import partition_of
from ..routes import Route
from .published import is_published_sql

# How many rows before a waiting one are counted.
MOST_COUNTED = 10_000

# LATERAL forces one index lookup per id. A relay that was killed loses its session at once, its lease 10 s later.
_READ = f"""
    SELECT message.event_id, message.id, message.event_type, message.topic, message.key, message.payload,
           message.traceparent, message.shard, message.created_at,
           extract(epoch FROM statement_timestamp() - message.created_at)::float,
           {is_published_sql("message")},
           held.reason, held.attempts, held.last_error, held.created_at,
           hold.reason, hold.id IS NOT NULL AND hold.key IS NULL,
           lease.owner IS NOT NULL AND lease.expires_at > statement_timestamp() AND EXISTS (
               SELECT FROM kafka_bridge_relaymember AS member
               JOIN pg_stat_activity AS session ON session.pid = member.backend_pid
               WHERE member.owner = lease.owner AND member.expires_at > statement_timestamp()
           ),
           coalesce(lease.sent_through, 0)
    FROM unnest(%s::uuid[]) AS asked (id)
         CROSS JOIN LATERAL (SELECT * FROM kafka_bridge_outboxmessage WHERE event_id = asked.id LIMIT 1) AS message
         LEFT JOIN kafka_bridge_heldmessage AS held ON held.message_id = message.id
         LEFT JOIN LATERAL (
             SELECT id, key, reason FROM kafka_bridge_outboxhold
             WHERE topic = message.topic AND (key IS NULL OR key = message.key) ORDER BY key NULLS FIRST LIMIT 1
         ) AS hold ON true
         LEFT JOIN kafka_bridge_relaylease AS lease ON lease.shard = message.shard
"""
_BEFORE = """
    SELECT count(*) FILTER (WHERE shard = %s AND published_at IS NULL) FROM (
        SELECT shard, published_at FROM kafka_bridge_outboxmessage WHERE id > %s AND id < %s ORDER BY id LIMIT %s
    ) AS before
"""


@dataclass(frozen=True, slots=True)
class Held:
    """Why and since when a row is held; ``reason`` as in HeldMessage."""

    reason: str
    attempts: int
    last_error: str
    since: datetime


@dataclass(frozen=True, slots=True)
class OutboxTrace:
    """A row of the outbox and what the relay has done with it.

    ``held`` None: the row is not held. ``operator_hold``: the reason of an operator's hold on its topic or key, None
    without one; ``holds_topic``: it is on the whole topic. ``has_relay``: a living relay has the row's shard.
    """

    event_id: UUID
    row_id: int
    event_type: str
    topic: str
    key: bytes | None
    payload: bytes
    traceparent: str
    shard: int
    created_at: datetime
    age_seconds: float
    is_published: bool
    held: Held | None
    operator_hold: str | None
    holds_topic: bool
    has_relay: bool
    sent_through: int

    @property
    def partition(self) -> int | None:
        """The partition that its key leads to; None if its topic has no route any more, or it has no key."""
        route: Route | None = settings.KAFKA_ROUTES.get(self.event_type)
        if route is None or route.topic != self.topic or self.key is None:
            return None
        return partition_of(self.key, route.partitions)

    @property
    def key_text(self) -> str:
        """The key as text; bytes that are no UTF-8 are replaced."""
        return (self.key or b"").decode("utf-8", "replace")

    def rows_before(self) -> int:
        """Count the rows of its shard that the relay sends first, at most ``MOST_COUNTED`` rows are looked at."""
        with connection.cursor() as cursor:
            cursor.execute(_BEFORE, [self.shard, self.sent_through, self.row_id, MOST_COUNTED])
            (number,) = cursor.fetchone() or (0,)
        return int(number)


def outbox_traces(event_ids: Collection[UUID]) -> dict[UUID, OutboxTrace]:
    """Return the rows of these events by event id, in one query; those not in the outbox are left out."""
    if not event_ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_READ, [arrays.uuids(event_ids)])
        return {row[0]: _trace(*row) for row in cursor.fetchall()}


def _trace(
    event_id: UUID,
    row_id: int,
    event_type: str,
    topic: str,
    key: memoryview | None,
    payload: memoryview | None,
    traceparent: str,
    shard: int,
    created_at: datetime,
    age_seconds: float,
    is_published: bool,
    held_reason: str | None,
    attempts: int | None,
    last_error: str | None,
    held_since: datetime | None,
    operator_hold: str | None,
    holds_topic: bool,
    has_relay: bool | None,
    sent_through: int,
) -> OutboxTrace:
    held = None
    if held_reason is not None and held_since is not None:
        held = Held(held_reason, attempts or 0, last_error or "", held_since)
    return OutboxTrace(
        event_id=event_id,
        row_id=row_id,
        event_type=event_type,
        topic=topic,
        key=None if key is None else bytes(key),
        payload=bytes(payload or b""),
        traceparent=traceparent,
        shard=shard,
        created_at=created_at,
        age_seconds=age_seconds,
        is_published=is_published,
        held=held,
        operator_hold=operator_hold,
        holds_topic=holds_topic,
        has_relay=bool(has_relay),
        sent_through=sent_through,
    )
