"""Publishes the messages of a lost topic again: from the outbox, under the same event ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection

from common.processes.lifecycle import StopFlag

from .publisher import COLUMNS, OutboxRecord, Publisher
from .topic_problems import TopicProblem

logger = logging.getLogger(__name__)

BATCH_SIZE = 1000
_PROGRESS_SECONDS = 10.0

# Only the primary key can serve this read, so it scans ranges of ids, in which few or all rows may be the topic's.
_SCANNED = 20_000
_MATCHES = """
    topic = %(topic)s AND published_at < %(before)s AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
"""
_READ = f"""
    SELECT {COLUMNS} FROM kafka_bridge_outboxmessage
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
    """Published outbox rows of ``topic`` (without prefix), with an id above ``after``, published before ``before`` and
    created at ``since`` or later (None: no lower limit).
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


class Republisher:
    """Sends the rows of a selection with its own producer; changes nothing in the outbox or the relays.

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
        publisher = Publisher(report=_ignore)
        reported_at = time.monotonic()
        try:
            for batch in self._selection.batches(self._batch_size):
                if stop:
                    break
                if publisher.send(batch, stop):
                    self.published += len(batch)
                else:
                    self._send_one_by_one(publisher, batch, stop)
                self.last_id = batch[-1].id
                if time.monotonic() - reported_at >= _PROGRESS_SECONDS:
                    reported_at = time.monotonic()
                    logger.info("%d messages published again, up to row %d", self.published, self.last_id)
        finally:
            publisher.discard()

    def _send_one_by_one(self, publisher: Publisher, batch: Sequence[OutboxRecord], stop: StopFlag) -> None:
        for row in batch:
            if publisher.send([row], stop):
                self.published += 1
            else:
                self.refused += 1
                logger.error("row %d (event %s) is refused: %s", row.id, row.event_id, publisher.refusal.args[0].str())


def _ignore(accepting: Collection[str], problems: Sequence[TopicProblem]) -> None:
    """Open no alert: the relay does that, and here the error or the log line of a stalled send is enough."""
