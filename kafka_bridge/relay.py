"""The relay: takes the outbox to Kafka, in order per key, and marks a row only after the broker's acknowledgement.

Why the order holds. A relay always starts at the first unpublished row of its shards, goes on in id order without
gaps, and its idempotent producer keeps that order per partition. So whoever publishes a row has published, or found
acknowledged, every earlier committed row of its key: the first copy of an earlier row always comes before the first
copy of a later one. A second relay, or one that hung and wakes up, only adds later copies of the same ids. It never
asks for "id greater than the last seen": a row of a transaction that commits late would be skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec
from django.db import connection, transaction

from . import arrays, metrics
from .client import REFUSED_FOR_GOOD, KafkaError, KafkaException, Message, Producer, make_producer
from .contracts import cloud_event_headers, decode_headers
from .dead_letters import RELAY, bury
from .errors import is_transient
from .floor import Floor
from .leases import Leases
from .lifecycle import StopFlag, drop_connection, first_line
from .outbox import anything_unpublished
from .registry import ReceivedMessage, Rejected, prefixed, refused

logger = logging.getLogger(__name__)

BATCH_SIZE = 2000
_BUSY_PAUSE = 0.002
_IDLE_PAUSE = 0.1
_FAULT_PAUSE = 1.0
_FLUSH_SLICE = 0.2
# How long a stopping relay still waits for acknowledgements that are under way.
_STOP_GRACE = 5.0
_IDLE_BEFORE_EXIT = 1.0

# Id and time as text, which is what the headers need: as objects they cost more than all the rest of the row.
_SELECT = """
    SELECT id, event_id::text, event_type, topic, key, payload, headers, traceparent,
           (created_at AT TIME ZONE 'UTC')::text
    FROM kafka_bridge_outboxmessage
    WHERE published_at IS NULL AND id > %s {condition}
    ORDER BY id
    LIMIT %s
"""
_SELECT_ALL = _SELECT.format(condition="")
_SELECT_SHARDS = _SELECT.format(condition="AND shard = ANY(%s)")
_MARK = """
    UPDATE kafka_bridge_outboxmessage SET published_at = statement_timestamp() WHERE id = ANY(%s::bigint[])
"""


class PublishInterrupted(Exception):
    """The relay was asked to stop while messages were not acknowledged yet."""


class UnpublishedRow(msgspec.Struct, frozen=True, gc=False):
    """A row of the outbox as the relay reads it; ``created_at`` in UTC.

    The garbage collector passes it over: looking at thousands of rows again and again took a third of the read.
    """

    id: int
    event_id: str
    event_type: str
    topic: str
    # The driver gives views of its own buffer, hence ``bytes()`` wherever these are used.
    key: bytes | None
    payload: bytes | None
    headers: bytes | None
    traceparent: str
    created_at: str

    def wire_headers(self) -> list[tuple[str, str | bytes | None]]:
        if self.headers is not None:
            return list(decode_headers(bytes(self.headers)))
        return cloud_event_headers(
            event_id=self.event_id,
            event_type=self.event_type,
            time=f"{self.created_at.replace(' ', 'T')}Z",
            traceparent=self.traceparent,
        )

    def message(self) -> ReceivedMessage:
        """The row as a message that never got to its topic: partition -1, and the row's id for an offset."""
        return ReceivedMessage(
            topic=self.topic,
            partition=-1,
            offset=self.id,
            timestamp=0,
            key=None if self.key is None else bytes(self.key),
            value=None if self.payload is None else bytes(self.payload),
            headers=tuple((name, _bytes(value)) for name, value in self.wire_headers()),
        )


class Relay:
    """Publishes the rows of the shards it holds the lease of. One relay is one thread."""

    def __init__(self, *, batch_size: int = BATCH_SIZE, turned: Callable[[], None] = lambda: None) -> None:
        """``turned`` is called at every pass, and while the broker is waited for: see ``heartbeat``."""
        self._batch_size = batch_size
        self._turned = turned
        self._producer: Producer | None = None
        self._leases = Leases()
        self._floor = Floor()
        self._floor_shards: Sequence[int] = ()
        self._failures: list[KafkaError] = []

    def run(self, stop: StopFlag, *, until_idle: bool = False) -> None:
        """Publish until ``stop``, or with ``until_idle`` until there was nothing to do for a second."""
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
        """Drop what is not acknowledged and give the shards back."""
        self._discard_producer()
        self._leases.release()

    def relay_batch(self, stop: StopFlag) -> int:
        """One pass: read, send, wait for every acknowledgement, mark. Returns the number of rows marked.

        Raises PublishInterrupted if ``stop`` came first; the rows then stay unpublished.
        """
        self._turned()
        shards = self._leases.held()
        if not shards:
            return 0
        started_at = time.monotonic()
        rows = self._read(shards)
        if not rows:
            return 0
        if self._send(rows, stop):
            self._mark(rows)
        else:
            self._send_one_by_one(rows, stop)
        metrics.PUBLISHED.inc(len(rows))
        metrics.RELAY_SECONDS.observe(time.monotonic() - started_at)
        return len(rows)

    def _read(self, shards: Sequence[int]) -> list[UnpublishedRow]:
        if shards != self._floor_shards:
            self._floor.reset()
            self._floor_shards = shards
        floor = self._floor.value()
        with connection.cursor() as cursor:
            if self._leases.holds_all:
                cursor.execute(_SELECT_ALL, [floor, self._batch_size])
            else:
                cursor.execute(_SELECT_SHARDS, [floor, list(shards), self._batch_size])
            rows = [UnpublishedRow(*row) for row in cursor.fetchall()]
        self._floor.advance(first_unpublished=rows[0].id if rows else None)
        return rows

    def _send(self, rows: Sequence[UnpublishedRow], stop: StopFlag) -> bool:
        """Produce ``rows`` in order and wait; False if the broker refused some for good.

        Raises the error of any other failure: what was sent stays unmarked and is read again from the table.
        """
        self._failures.clear()
        if self._producer is None:
            self._producer = make_producer()
        producer = self._producer
        topics = {topic: prefixed(topic) for topic in {row.topic for row in rows}}
        for row in rows:
            try:
                self._produce(producer, topics[row.topic], row)
            except KafkaException as error:
                # The client itself refuses what is past message.max.bytes, before it queues anything.
                self._failures.append(error.args[0])
                break
        self._flush(producer, stop)
        if not self._failures:
            return True
        if all(failure.code() in REFUSED_FOR_GOOD for failure in self._failures):
            return False
        raise KafkaException(self._failures[0])

    def _produce(self, producer: Producer, topic: str, row: UnpublishedRow) -> None:
        while True:
            try:
                return producer.produce(
                    topic,
                    value=None if row.payload is None else bytes(row.payload),
                    key=None if row.key is None else bytes(row.key),
                    headers=row.wire_headers(),
                    on_delivery=self._on_failure,
                )
            except BufferError:
                # Only a producer queue that the settings made smaller than a batch gets here.
                producer.poll(_FLUSH_SLICE)

    def _flush(self, producer: Producer, stop: StopFlag) -> None:
        """Wait, however long, until every message is acknowledged or refused; a stop shortens that to seconds."""
        give_up_at: float | None = None
        while producer.flush(_FLUSH_SLICE):
            self._turned()
            self._leases.renew()
            if stop:
                give_up_at = give_up_at or time.monotonic() + _STOP_GRACE
                if time.monotonic() >= give_up_at:
                    raise PublishInterrupted

    def _send_one_by_one(self, rows: Sequence[UnpublishedRow], stop: StopFlag) -> None:
        """Find which of ``rows`` the broker refuses: that one becomes a dead letter and its key goes on."""
        for row in rows:
            if self._send([row], stop):
                self._mark([row])
                continue
            with transaction.atomic():
                self._bury(row, KafkaException(self._failures[0]))
                self._mark([row])

    def _bury(self, row: UnpublishedRow, error: KafkaException) -> None:
        rejected = [Rejected(row.message(), error)]
        # What the dead-letter topic refuses is not told there once more.
        is_event = row.headers is None
        bury(RELAY, RELAY, rejected, tell=is_event)
        if is_event:
            refused(row.event_type, rejected)

    def _mark(self, rows: Sequence[UnpublishedRow]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_MARK, [arrays.numbers([row.id for row in rows])])

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(error)

    def _recover(self, error: Exception) -> None:
        """Start afresh after a fault: nothing of the old producer may still be sent once the table is read again."""
        if is_transient(error) or isinstance(error, KafkaException):
            logger.warning("relay: %s: %s; trying again", type(error).__name__, first_line(error))
        else:
            logger.error("relay: unexpected error; trying again", exc_info=error)
        self._discard_producer()
        self._floor.reset()
        drop_connection()

    def _discard_producer(self) -> None:
        if self._producer is not None:
            self._producer.purge(in_queue=True, in_flight=True, blocking=True)
            self._producer.flush(0)
            self._producer = None


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
