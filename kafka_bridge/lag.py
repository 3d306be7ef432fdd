"""The lag of every partition of every consumer group, as its consumer or the sweep reported it last."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

import msgspec
from django.db import connection

from .models import ProcessHeartbeat, SweptPartition

# Three heartbeats: the partitions of a process that is silent for longer are read by the sweep.
LIVING_SECONDS = 15

_LAGS = f"""
    SELECT false, seen_at, partitions::text, NULL, NULL, NULL, NULL, NULL
    FROM {ProcessHeartbeat._meta.db_table}
    WHERE seen_at > statement_timestamp() - %s * interval '1 second' AND partitions <> '[]'
    UNION ALL
    SELECT true, read_at, NULL, consumer_group, topic, partition, messages,
           greatest(0, coalesce(extract(epoch FROM statement_timestamp() - oldest_at) * 1000, 0))::bigint
    FROM {SweptPartition._meta.db_table}
    -- The reports of processes first.
    ORDER BY 1, 2 DESC
"""


class HeldPartition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a consumer says of a partition that it holds, at the time of the heartbeat; in the row it is JSON.

    ``topic`` is as the broker names it. ``lag`` counts messages. ``lag_ms`` is the age of the first message at or after
    ``next_offset``, the next one to be handled; 0 at the end, or where only markers of transactions follow; while
    messages exist that were not fetched, the time since that began. None: unknown, since the partition is new to the
    consumer, its loop does not poll, or the partition is paused and not fetched. ``end_offset`` is the end that the
    client knows. ``state`` is ``ok``, ``retrying``, ``poison-limit`` or ``paused``, for ``state_seconds``. Of a
    partition that is tried again: ``waits_at`` is the offset of its first message, ``error`` why its last try failed.
    """

    group: str
    topic: str
    partition: int
    lag: int | None = None
    lag_ms: int | None = None
    state: str = "ok"
    state_seconds: float = 0.0
    next_offset: int | None = None
    end_offset: int | None = None
    waits_at: int | None = None
    error: str = ""


class Place(NamedTuple):
    """A partition of a consumer group, named as in the settings; ``topic`` has the prefix."""

    group: str
    topic: str
    partition: int


class PartitionLag(NamedTuple):
    """What a group has not handled of a partition.

    ``milliseconds`` is the age of its oldest message; 0: there is none. ``state`` is what the consumer says of the
    partition (``ok``, ``retrying``), and empty if the sweep has read it.
    """

    place: Place
    messages: int
    milliseconds: int
    state: str
    reported_by: Literal["process", "sweep"]
    reported_at: datetime


def lag_by_partition() -> list[PartitionLag]:
    """Return the lag of all partitions that are known, sorted by group, topic and partition. Makes one query.

    What a living process reports comes before what the sweep read, and the latest report before earlier ones. A process
    that holds a partition and does not know its lag does not count: its consumer hangs, or has just got the partition.
    """
    lags: dict[Place, PartitionLag] = {}
    with connection.cursor() as cursor:
        cursor.execute(_LAGS, [LIVING_SECONDS])
        rows = cursor.fetchall()
    for is_swept, at, partitions, *swept in rows:
        if is_swept:
            group, topic, partition, messages, milliseconds = swept
            place = Place(group, topic, partition)
            lags.setdefault(place, PartitionLag(place, messages, milliseconds, "", "sweep", at))
            continue
        for held in decode_partitions(partitions):
            if held.lag_ms is not None:
                place = Place(held.group, held.topic, held.partition)
                lags.setdefault(place, PartitionLag(place, held.lag or 0, held.lag_ms, held.state, "process", at))
    return [lags[place] for place in sorted(lags)]


def decode_partitions(partitions: str) -> list[HeldPartition]:
    """Decode the partitions of a heartbeat; none if another version, or a hand, wrote what is no such list."""
    try:
        return _decoder.decode(partitions)
    except msgspec.MsgspecError:
        return []


_decoder = msgspec.json.Decoder(list[HeldPartition])
