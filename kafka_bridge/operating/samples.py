"""Samples: what each process counted within a few seconds, for alarms, key figures and charts.

They are differences of the Prometheus counters, read by the heartbeat's thread, so counting costs no more than before.
A process that is killed loses what it counted since its last heartbeat.

Sources and counters:

- a consumer group: ``handled`` (messages brought to an end, dead letters included), ``dead_letters``, ``passed_over``
  (failed and only logged), ``busy_seconds`` (of its batches), ``message_seconds`` (each message counts the time from
  the begin of its batch to the commit: divided by ``handled`` it is the mean per message);
- ``issue`` also ``errors``: requests that ended with ERROR without a dead letter;
- ``relay``: ``published``;
- ``accept``: ``accepted``, ``refused`` (by a rule), ``unavailable`` (503).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction
from prometheus_client.metrics import MetricWrapperBase

from common.postgres.limited_reads import limited_read
from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag

from .. import metrics
from .housekeeping import HousekeepingTask, register_task
from .row_pruning import PAUSE_SECONDS, prune_aged

# Samples are folded to minutes after this time; a key figure of a shorter period is exact to a few seconds.
FOLD_AFTER_MINUTES = 60
_FOLDED_MINUTES = 10

_INSERT = """
    INSERT INTO kafka_bridge_sample (process_id, source, seconds, counts)
    SELECT %s, source, %s, counts FROM jsonb_each(%s::jsonb) AS sample (source, counts)
"""
_OLDEST_TO_FOLD = f"""
    SELECT date_trunc('minute', min(taken_at)) FROM kafka_bridge_sample
    WHERE process_id IS NOT NULL
      AND taken_at < date_trunc('minute', statement_timestamp() - interval '{FOLD_AFTER_MINUTES} minutes')
"""
# Whole minutes: a minute that is folded in two parts would do no harm, but be two rows.
_FOLD = f"""
    WITH taken AS (
        DELETE FROM kafka_bridge_sample
        WHERE process_id IS NOT NULL AND taken_at < least(
            %s + interval '{_FOLDED_MINUTES} minutes',
            date_trunc('minute', statement_timestamp() - interval '{FOLD_AFTER_MINUTES} minutes'))
        RETURNING source, date_trunc('minute', taken_at) AS minute, counts
    ), folded AS (
        INSERT INTO kafka_bridge_sample (process_id, source, taken_at, seconds, counts)
        SELECT NULL, source, minute, 60, jsonb_object_agg(name, total)
        FROM (
            SELECT source, minute, name, sum(number::float8) AS total
            FROM taken, jsonb_each_text(counts) AS counter (name, number) GROUP BY source, minute, name
        ) AS totals
        GROUP BY source, minute
    )
    SELECT count(*) FROM taken
"""
_COUNTS_SINCE = """
    SELECT source, name, sum(number::float8)
    FROM kafka_bridge_sample, jsonb_each_text(counts) AS counter (name, number)
    WHERE taken_at > statement_timestamp() - %s * interval '1 second'
    GROUP BY source, name
"""
_PER_MINUTE = """
    WITH counted AS (
        SELECT date_trunc('minute', taken_at) AS minute, name, sum(number::float8) AS total
        FROM kafka_bridge_sample, jsonb_each_text(counts) AS counter (name, number)
        WHERE source = %(source)s
          AND taken_at >= date_trunc('minute', statement_timestamp()) - (%(minutes)s - 1) * interval '1 minute'
        GROUP BY 1, 2
    )
    SELECT minute, coalesce(jsonb_object_agg(name, total) FILTER (WHERE name IS NOT NULL), '{}')::text
    FROM generate_series(
        date_trunc('minute', statement_timestamp()) - (%(minutes)s - 1) * interval '1 minute',
        date_trunc('minute', statement_timestamp()), interval '1 minute'
    ) AS minute LEFT JOIN counted USING (minute)
    GROUP BY minute ORDER BY minute
"""

Counts = dict[str, dict[str, float]]


class CounterValue(NamedTuple):
    """What a process has counted so far for a source."""

    source: str
    counter: str
    value: float


class MinuteCounts(NamedTuple):
    """What all processes counted for one source in the minute that begins at ``minute``."""

    minute: datetime
    counts: dict[str, float]


ReadCounters = Callable[[], Iterable[CounterValue]]

_readers: list[ReadCounters] = []


def register_counters(read: ReadCounters) -> None:
    """Register counters to be sampled. Several values of the same source and counter are added."""
    _readers.append(read)


def labelled_values(metric: MetricWrapperBase, suffix: str = "_total") -> Iterator[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of ``metric`` in this process whose name ends with ``suffix``."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(suffix):
                yield sample.labels, sample.value


def bridge_counters() -> Iterator[CounterValue]:
    """Return the counters of consumers and relay."""
    for counter, metric, suffix in (
        ("handled", metrics.CONSUMED, "_total"),
        ("dead_letters", metrics.DEAD_LETTERS, "_total"),
        ("passed_over", metrics.PASSED_OVER, "_total"),
        ("busy_seconds", metrics.BATCH_SECONDS, "_sum"),
        ("message_seconds", metrics.MESSAGE_SECONDS, "_total"),
    ):
        for labels, value in labelled_values(metric, suffix):
            yield CounterValue(labels["group"], counter, value)
    for _, value in labelled_values(metrics.PUBLISHED):
        yield CounterValue("relay", "published", value)


class Sampler:
    """Writes what this process has counted since the last sample, with one INSERT."""

    def __init__(self, process_id: UUID) -> None:
        self._process_id = process_id
        # The files of prometheus_client may hold what an earlier process with our pid counted.
        self._counted = _read_counters()
        self._taken_at = time.monotonic()

    def write(self) -> None:
        """Write a sample unless nothing was counted. Raises what the database raises: the next sample covers it."""
        counted, taken_at = _read_counters(), time.monotonic()
        counts: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for (source, counter), value in counted.items():
            if (difference := value - self._counted.get((source, counter), 0.0)) > 0:
                counts[source][counter] = round(difference, 6)
        if counts:
            with connection.cursor() as cursor:
                cursor.execute(
                    _INSERT, [self._process_id, taken_at - self._taken_at, msgspec.json.encode(counts).decode()]
                )
        self._counted, self._taken_at = counted, taken_at


def _read_counters() -> dict[tuple[str, str], float]:
    values: defaultdict[tuple[str, str], float] = defaultdict(float)
    for read in _readers:
        for source, counter, value in read():
            values[source, counter] += value
    return values


def counts_since(seconds: float) -> Counts:
    """Return what all processes counted in the last ``seconds``: ``{source: {counter: number}}``.

    Sources and counters without a count are missing. Beyond ``FOLD_AFTER_MINUTES`` the begin is exact to a minute.
    """
    counts: Counts = defaultdict(dict)
    for source, counter, number in limited_read(_COUNTS_SINCE, [seconds]):
        counts[source][counter] = number
    return dict(counts)


def per_minute(source: str, minutes: int) -> list[MinuteCounts]:
    """Return the counts of ``source`` in each of the last ``minutes``, oldest first; the last one is not over yet."""
    with connection.cursor() as cursor:
        cursor.execute(_PER_MINUTE, {"source": source, "minutes": minutes})
        return [MinuteCounts(minute, json.loads(counts)) for minute, counts in cursor.fetchall()]


def samples_prune(stop: StopFlag) -> int:
    """Fold samples older than an hour to minutes, and delete those past ``SAMPLE_RETENTION_DAYS``.

    Returns the number of rows deleted.
    """
    deleted = 0
    while not stop:
        with transaction.atomic(), connection.cursor() as cursor:
            limit_lock_waits()
            cursor.execute(_OLDEST_TO_FOLD)
            (oldest,) = cursor.fetchone() or (None,)
            if oldest is None:
                break
            cursor.execute(_FOLD, [oldest])
            (folded,) = cursor.fetchone() or (0,)
            deleted += folded
        stop.wait(PAUSE_SECONDS)
    kept = timedelta(days=settings.SAMPLE_RETENTION_DAYS)
    return deleted + prune_aged("kafka_bridge_sample", "taken_at", kept, stop)


def register() -> None:
    """Register the counters of the bridge and the housekeeping of samples; called once, when the app is ready."""
    register_counters(bridge_counters)
    register_task(HousekeepingTask("samples", "SAMPLE_RETENTION_DAYS", samples_prune))
