"""The relay: publishes the outbox to Kafka, in order per key, and marks a row only after the broker's acknowledgement.

Why the order holds: a relay always starts at the first unpublished row of its shards and continues in id order without
gaps, and its idempotent producer keeps that order per partition. So a relay that publishes a row has published, or
found marked as published, every earlier committed row of the same key: the first copy of an earlier row always comes
before the first copy of a later one. A second relay, or one that hung and resumes, only adds later copies of the same
ids. The relay never reads "id greater than the last seen": that would skip a row whose transaction commits late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from django.db import connection, transaction

from common.postgres import arrays
from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient

from .. import metrics
from ..client import KafkaException
from ..consuming.dead_letters import RELAY, write_dead_letters
from ..outbox.settled_mark import SettledMark
from ..outbox.writing import anything_unpublished
from ..registry import Rejected, broker_rejected
from .leases import Leases
from .publisher import COLUMNS, OutboxRecord, Publisher, PublishInterrupted
from .topic_problems import TopicAlerts, TopicProblem

logger = logging.getLogger(__name__)

BATCH_SIZE = 2000
_BUSY_PAUSE = 0.002
_IDLE_PAUSE = 0.1
_FAULT_PAUSE = 1.0
_IDLE_BEFORE_EXIT = 1.0

_SELECT = f"""
    SELECT {COLUMNS}
    FROM kafka_bridge_outboxmessage
    WHERE published_at IS NULL AND id > %s {{condition}}
    ORDER BY id
    LIMIT %s
"""
_SELECT_ALL = _SELECT.format(condition="")
_SELECT_SHARDS = _SELECT.format(condition="AND shard = ANY(%s)")
_MARK = """
    UPDATE kafka_bridge_outboxmessage SET published_at = statement_timestamp() WHERE id = ANY(%s::bigint[])
"""


class Relay:
    """Publishes the rows of the shards it holds the lease of. One relay is one thread."""

    def __init__(self, *, batch_size: int = BATCH_SIZE, tick: Callable[[], None] = lambda: None) -> None:
        """``tick`` is called in every pass and while waiting for the broker, see ``heartbeat``."""
        self._batch_size = batch_size
        self._tick = tick
        self._publisher = Publisher(report=self._report_topics, on_wait=self._keep_alive)
        self._topic_alerts = TopicAlerts()
        self._leases = Leases()
        self._settled_mark = SettledMark()
        self._marked_shards: Sequence[int] = ()

    def run(self, stop: StopFlag, *, until_idle: bool = False) -> None:
        """Publish until ``stop`` or, with ``until_idle``, until the outbox had no unpublished row for 1 s."""
        pause = _BUSY_PAUSE
        idle_since = time.monotonic()
        try:
            while not stop:
                try:
                    published = self.relay_batch(stop)
                except PublishInterrupted:
                    break
                except Exception as error:
                    self._recover(error)
                    stop.wait(_FAULT_PAUSE)
                    idle_since = time.monotonic()
                    continue
                if published:
                    pause = _BUSY_PAUSE
                    idle_since = time.monotonic()
                    continue
                if until_idle and time.monotonic() - idle_since >= _IDLE_BEFORE_EXIT and not anything_unpublished():
                    break
                stop.wait(pause)
                pause = min(pause * 2, _IDLE_PAUSE)
        finally:
            self.close()

    def close(self) -> None:
        """Purge unacknowledged messages and release the shards."""
        self._publisher.discard()
        self._leases.release()

    def relay_batch(self, stop: StopFlag) -> int:
        """One pass: read, send, wait for every acknowledgement, mark. Returns the number of rows marked.

        Raises PublishInterrupted if ``stop`` came first; the rows then stay unpublished.
        """
        self._tick()
        shards = self._leases.held()
        if not shards:
            return 0
        started_at = time.monotonic()
        rows = self._read(shards)
        if not rows:
            self._topic_alerts.end_all()
            self._topic_alerts.end_left_over()
            return 0
        if self._publisher.send(rows, stop):
            self._mark(rows)
        else:
            self._send_one_by_one(rows, stop)
        # These were the first unpublished rows, so every row that an open alert was about is among them or deleted.
        self._topic_alerts.end_all()
        metrics.PUBLISHED.inc(len(rows))
        metrics.RELAY_SECONDS.observe(time.monotonic() - started_at)
        return len(rows)

    def _read(self, shards: Sequence[int]) -> list[OutboxRecord]:
        if shards != self._marked_shards:
            self._settled_mark.reset()
            self._marked_shards = shards
        above = self._settled_mark.value()
        with connection.cursor() as cursor:
            if self._leases.holds_all:
                cursor.execute(_SELECT_ALL, [above, self._batch_size])
            else:
                cursor.execute(_SELECT_SHARDS, [above, list(shards), self._batch_size])
            rows = [OutboxRecord(*row) for row in cursor.fetchall()]
        self._settled_mark.advance(first_unpublished=rows[0].id if rows else None)
        return rows

    def _send_one_by_one(self, rows: Sequence[OutboxRecord], stop: StopFlag) -> None:
        """Send ``rows`` singly: a row that the broker refuses becomes a dead letter, and its key continues after it."""
        for row in rows:
            if self._publisher.send([row], stop):
                self._mark([row])
                continue
            with transaction.atomic():
                self._write_dead_letter(row, self._publisher.refusal)
                self._mark([row])

    def _write_dead_letter(self, row: OutboxRecord, error: KafkaException) -> None:
        rejected = [Rejected(row.message(), error)]
        # A dead letter that its own topic refuses is not published there again.
        is_event = row.headers is None
        write_dead_letters(RELAY, RELAY, rejected, publish=is_event)
        if is_event:
            broker_rejected(row.event_type, rejected)

    def _mark(self, rows: Sequence[OutboxRecord]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_MARK, [arrays.numbers([row.id for row in rows])])

    def _report_topics(self, accepting: Collection[str], problems: Sequence[TopicProblem]) -> None:
        self._topic_alerts.end(accepting)
        self._topic_alerts.open(problems)

    def _keep_alive(self) -> None:
        self._tick()
        self._leases.renew()

    def _recover(self, error: Exception) -> None:
        """Reset producer, settled mark and connection: the old producer must send nothing after the next read."""
        if is_transient(error) or isinstance(error, KafkaException):
            logger.warning("relay: %s: %s; trying again", type(error).__name__, first_line(error))
        else:
            logger.error("relay: unexpected error; trying again", exc_info=error)
        self._publisher.discard()
        self._settled_mark.reset()
        drop_connection()
