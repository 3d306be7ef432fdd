"""The sweep: it reads from Kafka the lag of partitions that no living process reports, and keeps it in PostgreSQL.

It only looks: it joins no group and commits nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, NamedTuple

from django.db import connection

from common.postgres import arrays
from common.postgres.clock import database_time
from common.processes.lifecycle import first_line
from common.processes.outages import ServiceUnavailable

from ..client import (
    EARLIEST,
    LATEST,
    PARTITION_EOF,
    AdminClient,
    Consumer,
    IsolationLevel,
    KafkaException,
    OffsetSpec,
    TopicPartition,
    make_admin,
    make_consumer,
)
from ..lag import Place, lag_by_partition
from ..models import SweptPartition
from ..registry import ConsumerGroup, groups

# Each of the sweep's three requests in a row, and its reading of messages, takes at most so long.
_REQUEST_SECONDS = 3.0
_READ_SECONDS = 3.0
# The first message of a partition is enough: no more is fetched than the batch that holds it.
_FETCH_LITTLE = {"queued.min.messages": 1, "fetch.message.max.bytes": 16_384}
# The end of what timestamptz holds, roughly: other producers may send any timestamp.
_LATEST_MS = 4_102_444_800_000

_KEEP = f"""
    WITH wanted AS (
        SELECT * FROM unnest(%(groups)s::text[], %(topics)s::text[], %(partitions)s::int[])
                      AS wanted (consumer_group, topic, partition)
    ), others AS (
        DELETE FROM {SweptPartition._meta.db_table} AS swept
        WHERE NOT EXISTS (SELECT FROM wanted WHERE (wanted.consumer_group, wanted.topic, wanted.partition)
                                                 = (swept.consumer_group, swept.topic, swept.partition))
    )
    INSERT INTO {SweptPartition._meta.db_table} (consumer_group, topic, partition, messages, oldest_at, read_at)
    SELECT consumer_group, topic, partition, messages, to_timestamp(oldest_ms / 1000.0), statement_timestamp()
    FROM unnest(%(read_groups)s::text[], %(read_topics)s::text[], %(read_partitions)s::int[], %(messages)s::bigint[],
                %(oldest)s::bigint[]) AS read (consumer_group, topic, partition, messages, oldest_ms)
    ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET
        messages = EXCLUDED.messages, oldest_at = EXCLUDED.oldest_at, read_at = EXCLUDED.read_at
"""

Partition = tuple[str, int]


class Backlog(NamedTuple):
    """Offsets: the first that a group has not committed, up to where consumers can read, and the end of the partition.

    ``stable`` is before ``end`` while a transaction of another producer is open: what is behind it waits for its end.
    """

    start: int
    stable: int
    end: int


class _First(NamedTuple):
    """Since when a backlog waits, in ms since 1970, and whether a message says so, by its timestamp.

    Without a message it waits for an open transaction, since the sweep has seen that; ``since`` None: for nothing.
    """

    backlog: Backlog
    since: int | None
    is_message: bool

    @property
    def messages(self) -> int:
        return 0 if self.since is None else self.backlog.end - self.backlog.start


class LagSweep:
    """Reads the lag of what no process reports. A topic that does not exist has no lag."""

    def __init__(self, swept_groups: Callable[[], Collection[ConsumerGroup]] = lambda: groups().values()) -> None:
        self._groups = swept_groups
        self._admin: AdminClient | None = None
        self._firsts: dict[Place, _First] = {}

    def look(self) -> None:
        """Read and keep the lags once, within 12 s. Partitions that cannot be read keep the lag of the last sweep.

        Raises ServiceUnavailable if Kafka does not answer, and what the database raises.
        """
        now = int(database_time().timestamp() * 1000)
        reported = {lag.place for lag in lag_by_partition() if lag.reported_by == "process"}
        self._admin = self._admin or make_admin()
        try:
            unreported = self._unreported(self._admin, reported)
            readable = [place for place, has_leader in unreported.items() if has_leader]
            firsts, failures = self._read(self._admin, readable, now)
        except KafkaException as error:
            raise _unavailable(error) from error
        finally:
            # Serves its log lines, which are kept until then.
            self._admin.poll(0)
        self._firsts = firsts
        _keep(unreported, firsts)
        if failures:
            raise _unavailable(failures[0])

    def close(self) -> None:
        """Disconnect from Kafka."""
        self._admin = None
        self._firsts = {}

    def _unreported(self, admin: AdminClient, reported: Collection[Place]) -> dict[Place, bool]:
        """Return the places that no process reports, and whether their partition has a leader that can be asked."""
        topics = admin.list_topics(timeout=_REQUEST_SECONDS).topics
        places = {
            Place(group.name, topic, partition.id): partition.leader >= 0
            for group in self._groups()
            for topic in group.topics
            if topic in topics
            for partition in topics[topic].partitions.values()
        }
        return {place: has_leader for place, has_leader in places.items() if place not in reported}

    def _read(
        self, admin: AdminClient, places: Collection[Place], now: int
    ) -> tuple[dict[Place, _First], list[KafkaException]]:
        """Read all groups at once; returns what could be read, and the errors of the rest."""
        by_group: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            by_group[place.group].append(place)
        readers = [
            _GroupReader(group, admin, by_group[group.name]) for group in self._groups() if group.name in by_group
        ]
        firsts: dict[Place, _First] = {}
        # Daemon threads: while Kafka is away they must not keep a process from its end.
        threads = [
            Thread(target=reader.read_into, args=(firsts, self._firsts, now), name="lag-sweep", daemon=True)
            for reader in readers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return firsts, [failure for reader in readers for failure in reader.failures]


class _GroupReader:
    """Reads the backlogs of one group: as a consumer of its own, which joins no group, and commits nothing."""

    def __init__(self, group: ConsumerGroup, admin: AdminClient, places: Sequence[Place]) -> None:
        self._group = group
        self._admin = admin
        self._partitions = {(place.topic, place.partition): place for place in places}
        self.failures: list[KafkaException] = []

    def read_into(self, firsts: dict[Place, _First], known: Mapping[Place, _First], now: int) -> None:
        """Add what ``read`` returns to ``firsts``."""
        firsts.update(self.read(known, now))

    def read(self, known: Mapping[Place, _First], now: int) -> dict[Place, _First]:
        """Return since when each partition waits; reads only the messages that are not ``known``. ``now`` is in ms."""
        # Not the admin client's request for these offsets: librdkafka 2.16 crashes on it when the group's coordinator
        # moves or does not exist yet, since that client has no group.
        consumer = make_consumer(self._group.group_id, properties=_FETCH_LITTLE)
        try:
            backlogs = self._backlogs(consumer)
            earlier = {partition: known.get(place) for partition, place in self._partitions.items()}
            firsts = {
                partition: first
                for partition, backlog in backlogs.items()
                if (first := _first_without_reading(backlog, earlier[partition], now))
            }
            unknown = {partition: backlog for partition, backlog in backlogs.items() if partition not in firsts}
            for partition, timestamp in _read_timestamps(consumer, unknown).items():
                firsts[partition] = _first(backlogs[partition], timestamp, earlier[partition], now)
        except KafkaException as error:
            self.failures.append(error)
            return {}
        finally:
            consumer.close()
        return {self._partitions[partition]: first for partition, first in firsts.items()}

    def _backlogs(self, consumer: Consumer) -> dict[Partition, Backlog]:
        """Return what is left of each partition that can be read. The order matters: first the commits."""
        wanted = [TopicPartition(*partition) for partition in self._partitions]
        committed = consumer.committed(wanted, timeout=_REQUEST_SECONDS)
        asked = (
            self._ask(EARLIEST, IsolationLevel.READ_UNCOMMITTED),
            self._ask(LATEST, IsolationLevel.READ_COMMITTED),
            self._ask(LATEST, IsolationLevel.READ_UNCOMMITTED),
        )
        lows, stables, ends = map(self._offsets, asked)
        backlogs = {}
        for item in committed:
            partition = (item.topic, item.partition)
            if item.error is None and all(partition in offsets for offsets in (lows, stables, ends)):
                low, stable, end = lows[partition], stables[partition], ends[partition]
                # An offset out of range (none committed, or the topic was made anew) means: from the beginning.
                backlogs[partition] = Backlog(item.offset if low <= item.offset <= end else low, stable, end)
        return backlogs

    def _ask(self, spec: OffsetSpec, isolation: IsolationLevel) -> Mapping[TopicPartition, Future[Any]]:
        futures: Mapping[TopicPartition, Future[Any]] = self._admin.list_offsets(
            {TopicPartition(*partition): spec for partition in self._partitions},
            isolation_level=isolation,
            request_timeout=_REQUEST_SECONDS,
        )
        return futures

    def _offsets(self, asked: Mapping[TopicPartition, Future[Any]]) -> dict[Partition, int]:
        """Wait for the answers; returns the offset of each partition that has one."""
        offsets = {}
        for item, future in asked.items():
            try:
                offsets[item.topic, item.partition] = future.result().offset
            except KafkaException as error:
                self.failures.append(error)
        return offsets


def _first_without_reading(backlog: Backlog, known: _First | None, now: int) -> _First | None:
    """Return since when ``backlog`` waits if no message needs to be read for that, else None."""
    if backlog.start >= backlog.end:
        return _First(backlog, None, is_message=False)
    if backlog.start >= backlog.stable:
        return _first(backlog, None, known, now)
    # A topic that was deleted and created again ends earlier.
    if known is None or known.backlog.start != backlog.start or known.backlog.end > backlog.end:
        return None
    if known.is_message:
        return known._replace(backlog=backlog)
    return _first(backlog, None, known, now) if known.backlog.stable == backlog.stable else None


def _first(backlog: Backlog, timestamp: int | None, known: _First | None, now: int) -> _First:
    """Return since when ``backlog`` waits; ``timestamp`` is that of its first message, None if none can be read."""
    if timestamp is not None:
        return _First(backlog, timestamp, is_message=True)
    if backlog.stable >= backlog.end:
        # Markers of transactions, and messages of aborted ones.
        return _First(backlog, None, is_message=False)
    is_known = known is not None and not known.is_message and known.backlog.start == backlog.start
    since = known.since if known is not None and is_known else None
    return _First(backlog, since or now, is_message=False)


def _read_timestamps(consumer: Consumer, backlogs: Mapping[Partition, Backlog]) -> dict[Partition, int | None]:
    """Return the timestamp of the first message of each backlog; None: none can be read.

    Those that do not come in time are left out.
    """
    found: dict[Partition, int | None] = {}
    if backlogs:
        consumer.assign([TopicPartition(*partition, backlog.start) for partition, backlog in backlogs.items()])
    deadline = time.monotonic() + _READ_SECONDS
    while len(found) < len(backlogs) and (seconds := deadline - time.monotonic()) > 0:
        message = consumer.poll(seconds)
        topic, number = (message.topic(), message.partition()) if message is not None else (None, None)
        if message is None or topic is None or number is None:
            continue
        error = message.error()
        if error is None:
            _, timestamp = message.timestamp()
            # A message without a timestamp (-1) counts from 1970: it is not handled, and how long is not known.
            found.setdefault((topic, number), min(max(timestamp, 0), _LATEST_MS))
        elif error.code() == PARTITION_EOF:
            found.setdefault((topic, number), None)
    return found


def _keep(wanted: Collection[Place], firsts: Mapping[Place, _First]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            _KEEP,
            {
                "groups": arrays.texts([place.group for place in wanted]),
                "topics": arrays.texts([place.topic for place in wanted]),
                "partitions": arrays.numbers([place.partition for place in wanted]),
                "read_groups": arrays.texts([place.group for place in firsts]),
                "read_topics": arrays.texts([place.topic for place in firsts]),
                "read_partitions": arrays.numbers([place.partition for place in firsts]),
                "messages": arrays.numbers([first.messages for first in firsts.values()]),
                "oldest": arrays.numbers([first.since for first in firsts.values()]),
            },
        )


def _unavailable(error: KafkaException) -> ServiceUnavailable:
    return ServiceUnavailable(f"Kafka does not return the lag of all groups: {first_line(error)}")
