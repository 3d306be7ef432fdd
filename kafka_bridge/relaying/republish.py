"""Publishes the messages of a lost topic again: from the outbox, under the same event ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from django.db import connection

from common.processes.lifecycle import StopFlag

from ..errors import TopicsUnavailable
from ..outbox.addresses import present_address
from ..outbox.published import is_published_sql
from .publisher import COLUMNS, OutboxRecord, Publisher, TopicBatch
from .topic_problems import silence

logger = logging.getLogger(__name__)

BATCH_SIZE = 1000
_PROGRESS_SECONDS = 10.0
_SLICE = 0.5
# How long a stopping process waits for outstanding acknowledgements.
_STOP_GRACE = 5.0

# Only the primary key can serve this read, so it scans ranges of ids, in which few or all rows may be the topic's.
_SCANNED = 20_000
_MATCHES = f"""
    topic = %(topic)s AND created_at < %(before)s AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
    AND {is_published_sql()}
"""
_READ = f"""
    SELECT {", ".join(COLUMNS)} FROM kafka_bridge_outboxmessage
    WHERE id > %(after)s AND id <= %(until)s AND {_MATCHES} ORDER BY id LIMIT %(limit)s
"""
_NEXT = """
    SELECT max(id) FROM (
        SELECT id FROM kafka_bridge_outboxmessage WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
    ) AS scanned
"""
_COUNT = f"SELECT count(*) FROM kafka_bridge_outboxmessage WHERE id > %(after)s AND {_MATCHES}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Published outbox rows of ``topic`` (without prefix), with an id above ``after``, created before ``before`` and
    at ``since`` or later (None: no lower limit).
    """

    topic: str
    before: datetime
    since: datetime | None = None
    after: int = 0

    def count(self) -> int:
        """Return the number of rows. Reads the whole outbox."""
        with connection.cursor() as cursor:
            cursor.execute(_COUNT, self._values())
            (number,) = cursor.fetchone() or (0,)
        return int(number)

    def batches(self, size: int) -> Iterator[list[OutboxRecord]]:
        """Yield the rows in id order, at most ``size`` at a time."""
        after = self.after
        while (until := self._next(after)) is not None:
            while batch := self._read(after, until, size):
                yield batch
                after = batch[-1].id
            after = until

    def _next(self, after: int) -> int | None:
        with connection.cursor() as cursor:
            cursor.execute(_NEXT, {"after": after, "limit": _SCANNED})
            (until,) = cursor.fetchone() or (None,)
        return until

    def _read(self, after: int, until: int, limit: int) -> list[OutboxRecord]:
        with connection.cursor() as cursor:
            cursor.execute(_READ, {**self._values(), "after": after, "until": until, "limit": limit})
            return [OutboxRecord(*row) for row in cursor.fetchall()]

    def _values(self) -> dict[str, str | datetime | int | None]:
        return {"topic": self.topic, "before": self.before, "since": self.since, "after": self.after}


class PublishInterrupted(Exception):
    """The process was asked to stop while messages were not acknowledged yet."""


class Republisher:
    """Sends the rows of a selection with its own producer; changes nothing in the outbox or the relays.

    An event whose type has another topic now is sent to that one, by its present key.

    ``published`` counts acknowledged messages, ``refused`` those that the broker refuses for good (the relay has
    dead-lettered them before). Every row up to ``last_id`` is counted in one of the two.
    """

    def __init__(self, selection: Selection, *, batch_size: int = BATCH_SIZE) -> None:
        self._selection = selection
        self._batch_size = batch_size
        self.published = 0
        self.refused = 0
        self.last_id = selection.after

    def run(self, stop: StopFlag) -> None:
        """Publish the whole selection, or until ``stop``. Waits without limit while Kafka is unavailable.

        Raises PublishInterrupted for a stop within a batch, TopicsUnavailable if the topic is missing or forbidden,
        and what the database raises.
        """
        publisher = Publisher()
        reported_at = time.monotonic()
        try:
            for rows in self._selection.batches(self._batch_size):
                if stop:
                    break
                for topic, of_topic in _by_present_topic(rows).items():
                    self._send(publisher, topic, of_topic, stop)
                self.last_id = rows[-1].id
                if time.monotonic() - reported_at >= _PROGRESS_SECONDS:
                    reported_at = time.monotonic()
                    logger.info("%d messages published again, up to row %d", self.published, self.last_id)
        finally:
            publisher.discard()

    def _send(self, publisher: Publisher, topic: str, rows: Sequence[OutboxRecord], stop: StopFlag) -> None:
        while rows:
            batch = self._send_batch(publisher, topic, rows, stop)
            self.published += len(batch.acked)
            self.refused += len(batch.refused)
            for row, error in batch.refused:
                logger.error("row %d (event %s) is refused: %s", row.id, row.event_id, error.args[0].str())
            if batch.problem is not None and not batch.problem.is_search:
                raise TopicsUnavailable(str(batch.problem))
            rows = batch.remaining()

    def _send_batch(self, publisher: Publisher, topic: str, rows: Sequence[OutboxRecord], stop: StopFlag) -> TopicBatch:
        batch = publisher.begin(topic, rows)
        silent_since = time.monotonic()
        while not batch.has_ended:
            publisher.wait([batch], _SLICE)
            if stop and time.monotonic() - silent_since >= _STOP_GRACE:
                raise PublishInterrupted
            if time.monotonic() - silent_since >= _PROGRESS_SECONDS:
                silent_since = time.monotonic()
                logger.warning(
                    "%s", publisher.find_problem(batch.topic) or silence(batch.topic, len(batch.remaining()))
                )
        return batch


def _by_present_topic(rows: Sequence[OutboxRecord]) -> dict[str, list[OutboxRecord]]:
    """Return the rows by the topic that they go to now, in their order; copies of dead letters keep theirs."""
    by_topic: dict[str, list[OutboxRecord]] = {}
    for row in rows:
        if row.headers is None:
            topic, key = present_address(row.event_type, row.topic, row.key, row.payload or b"")
            row = msgspec.structs.replace(row, topic=topic, key=key)
        by_topic.setdefault(row.topic, []).append(row)
    return by_topic
