"""The lag of every partition of every consumer group, as its consumer or the sweep reported it last."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

from django.db import connection

from .models import ProcessHeartbeat, SweptPartition

# Three heartbeats: the partitions of a process that is silent for longer are read by the sweep.
LIVING_SECONDS = 15

_LAGS = f"""
    SELECT held."group", held.topic, held.partition, coalesce(held.lag, 0), held."lagMs", held.state, 'process',
           beat.seen_at
    FROM {ProcessHeartbeat._meta.db_table} AS beat
    CROSS JOIN LATERAL jsonb_to_recordset(beat.partitions)
        AS held ("group" text, topic text, partition int, lag bigint, "lagMs" bigint, state text)
    WHERE beat.seen_at > statement_timestamp() - %s * interval '1 second' AND held."lagMs" IS NOT NULL
    UNION ALL
    SELECT swept.consumer_group, swept.topic, swept.partition, swept.messages,
           greatest(0, coalesce(extract(epoch FROM statement_timestamp() - swept.oldest_at) * 1000, 0))::bigint,
           '', 'sweep', swept.read_at
    FROM {SweptPartition._meta.db_table} AS swept
    ORDER BY 7, 8 DESC
"""


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
        for group, topic, partition, *report in cursor.fetchall():
            place = Place(group, topic, partition)
            lags.setdefault(place, PartitionLag(place, *report))
    return [lags[place] for place in sorted(lags)]
