"""Sends outbox rows to Kafka, each topic through a producer of its own, in the order of the rows.

A producer per topic, so that a topic that accepts nothing delays no other. Its producer is gapless: after a message
that the broker refuses it sends nothing more, so no later row of the key overtakes the refused one. The rows that are
not acknowledged are then sent one by one until the refused row is found, and the rest through a new producer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import msgspec

from ..client import REFUSED_FOR_GOOD, KafkaError, KafkaException, Message, Producer, make_producer
from ..cloudevents import cloud_event_headers, decode_headers
from ..registry import ReceivedMessage, prefixed
from .topic_problems import TopicProblem, find_problem, problem_of_error, refusal

logger = logging.getLogger(__name__)

# The columns of an OutboxRecord. Event id and time are read as text, as the headers need them: parsed into objects they
# cost more than the rest of the row.
COLUMNS = (
    "id", "shard", "event_id::text", "event_type", "topic", "key", "payload", "headers", "traceparent",
    "(created_at AT TIME ZONE 'UTC')::text",
)  # fmt: skip
_FLUSH_SLICE = 0.05
# How long a full queue, or a row that is sent alone, may make no progress.
_FULL_SECONDS = 1.0
# How long rows are sent one by one while other topics wait.
_SINGLY_SECONDS = 0.25


class OutboxRecord(msgspec.Struct, frozen=True, gc=False):
    """A row of the outbox as it is read for publishing; ``created_at`` in UTC.

    Excluded from garbage collection (``gc=False``): scanning thousands of rows repeatedly took a third of the read.
    """

    id: int
    shard: int
    event_id: str
    event_type: str
    topic: str
    key: bytes | None
    payload: bytes | None
    headers: bytes | None
    traceparent: str
    created_at: str

    def wire_headers(self) -> list[tuple[str, str | bytes | None]]:
        if self.headers is not None:
            return list(decode_headers(self.headers))
        return cloud_event_headers(
            event_id=self.event_id,
            event_type=self.event_type,
            time=f"{self.created_at.replace(' ', 'T')}Z",
            traceparent=self.traceparent,
        )

    def message(self) -> ReceivedMessage:
        """Return the row as a message that never reached its topic: partition -1, offset the row id."""
        return ReceivedMessage(
            topic=self.topic,
            partition=-1,
            offset=self.id,
            timestamp=0,
            key=self.key,
            value=self.payload,
            headers=tuple((name, _bytes(value)) for name, value in self.wire_headers()),
        )


@dataclass(eq=False, slots=True)
class TopicBatch:
    """Rows handed to the producer of their topic, in id order, and what became of them so far.

    ``acked`` are on the topic. ``refused`` are rows that the broker refuses for good, each with its error. ``problem``
    is why the remaining rows of a batch that has ended are not on the topic.
    """

    topic: str
    rows: Sequence[OutboxRecord]
    acked: list[OutboxRecord] = field(default_factory=list)
    refused: list[tuple[OutboxRecord, KafkaException]] = field(default_factory=list)
    errors: list[KafkaError] = field(default_factory=list)
    problem: TopicProblem | None = None

    @property
    def is_done(self) -> bool:
        """Whether every row is acknowledged or refused."""
        return len(self.acked) + len(self.refused) == len(self.rows)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the batch is in flight."""
        return self.problem is not None or self.is_done

    def remaining(self) -> list[OutboxRecord]:
        """Return the rows that are neither acknowledged nor refused, in id order."""
        settled = {row.id for row in self.acked} | {row.id for row, _ in self.refused}
        return [row for row in self.rows if row.id not in settled]

    def delivered(self, row: OutboxRecord, error: KafkaError | None, _: Message) -> None:
        # Nothing more: when a producer fails, the client calls this with that exception pending.
        if error is None:
            self.acked.append(row)
        else:
            self.errors.append(error)


class Publisher:
    """The producers of one relay, by topic (without the prefix)."""

    def __init__(self, *, on_wait: Callable[[], None] = lambda: None) -> None:
        """``on_wait`` is called repeatedly while waiting for brokers; it may raise."""
        self._on_wait = on_wait
        self._producers: dict[str, Producer] = {}
        self._single: Producer | None = None
        # Topics that refuse a row that is not found yet.
        self._refusing: set[str] = set()

    def prepare(self, topics: Iterable[str]) -> None:
        """Make the producers of ``topics``: the first message of a new one takes half a second to be acknowledged."""
        for topic in topics:
            self._producer(topic)
        self._single = self._single or make_producer(gapless=False)

    def begin(self, topic: str, rows: Sequence[OutboxRecord]) -> TopicBatch:
        """Hand ``rows`` of ``topic`` to its producer, in order. The last batch of the topic must have ended."""
        batch = TopicBatch(topic, rows)
        if topic not in self._refusing:
            self._hand_over(batch, rows)
        return batch

    def wait(self, batches: Collection[TopicBatch], seconds: float) -> None:
        """Wait until all ``batches`` have ended, at most ``seconds``; a refused row is found and skipped meanwhile."""
        deadline = time.monotonic() + seconds
        pending = [batch for batch in batches if not batch.has_ended]
        while pending:
            for batch in pending:
                remaining = deadline - time.monotonic()
                self._flush(batch, max(0.0, min(_FLUSH_SLICE, remaining)))
            pending = [batch for batch in pending if not batch.has_ended]
            if pending and time.monotonic() >= deadline:
                return
            if pending:
                self._on_wait()

    def find_problem(self, topic: str) -> TopicProblem | None:
        """Ask the brokers why ``topic`` accepts no messages; return None if they see no reason."""
        return find_problem(self._producer(topic), prefixed(topic))

    def discard(self, topic: str | None = None) -> None:
        """Purge the messages of ``topic``, or of all, that are not acknowledged: nothing is sent after this call."""
        for name in list(self._producers) if topic is None else [topic]:
            if (producer := self._producers.pop(name, None)) is not None:
                _purge(producer)
        if topic is None:
            self._discard_single()

    def _producer(self, topic: str) -> Producer:
        if topic not in self._producers:
            self._producers[topic] = make_producer()
        return self._producers[topic]

    def _hand_over(self, batch: TopicBatch, rows: Iterable[OutboxRecord]) -> None:
        producer, topic = self._producer(batch.topic), prefixed(batch.topic)
        for row in rows:
            try:
                self._produce(producer, topic, row, partial(batch.delivered, row))
            except KafkaException as error:
                # The client itself refuses a message above message.max.bytes, before queueing it.
                batch.errors.append(error.args[0])
                return

    def _produce(self, producer: Producer, topic: str, row: OutboxRecord, on_delivery: Callable[..., None]) -> None:
        gives_up_at: float | None = None
        while True:
            try:
                producer.produce(
                    topic,
                    value=row.payload,
                    key=row.key,
                    headers=row.wire_headers(),
                    on_delivery=on_delivery,
                )
            except BufferError:
                # Only possible when the settings make the producer's queue smaller than a batch.
                gives_up_at = gives_up_at or time.monotonic() + _FULL_SECONDS
                if time.monotonic() >= gives_up_at:
                    raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from None
                producer.poll(_FLUSH_SLICE)
            else:
                return

    def _flush(self, batch: TopicBatch, seconds: float) -> None:
        if batch.topic in self._refusing:
            self._skip_refused(batch)
            return
        failure: KafkaError | None = None
        unreported = 0
        try:
            unreported = self._producers[batch.topic].flush(seconds)
        except (KafkaException, SystemError) as error:
            failure = _client_error(error)
        if batch.is_done or unreported or not (failure or batch.errors):
            return
        self.discard(batch.topic)
        failure = next((error for error in batch.errors if error.code() in REFUSED_FOR_GOOD), failure)
        failure = failure or batch.errors[0]
        batch.errors.clear()
        if failure.code() in REFUSED_FOR_GOOD or failure.code() == KafkaError._GAPLESS_GUARANTEE:
            self._skip_refused(batch)
        else:
            batch.problem = problem_of_error(prefixed(batch.topic), failure)

    def _skip_refused(self, batch: TopicBatch) -> None:
        """Send the remaining rows one by one until the refused row is found, and hand over the rest again.

        Only for a quarter of a second, since other topics wait meanwhile: then the batch ends with the rest unsent.
        """
        rows = batch.remaining()
        self._refusing.add(batch.topic)
        deadline: float | None = None
        for index, row in enumerate(rows):
            if deadline is not None and time.monotonic() >= deadline:
                batch.problem = refusal(prefixed(batch.topic))
                return
            error = self._send_one(row)
            # The first message of a new producer takes half a second.
            deadline = deadline or time.monotonic() + _SINGLY_SECONDS
            if error is None:
                batch.acked.append(row)
            elif error.code() in REFUSED_FOR_GOOD:
                batch.refused.append((row, KafkaException(error)))
                self._refusing.discard(batch.topic)
                self._hand_over(batch, rows[index + 1 :])
                return
            else:
                batch.problem = problem_of_error(prefixed(batch.topic), error)
                return
        self._refusing.discard(batch.topic)

    def _send_one(self, row: OutboxRecord) -> KafkaError | None:
        """Send a row and wait for its acknowledgement; return the error that prevents it.

        A producer of its own, which goes on after a refusal: a new gapless one would take half a second for each.
        """
        if self._single is None:
            self._single = make_producer(gapless=False)
        reports: list[KafkaError | None] = []
        try:
            self._produce(self._single, prefixed(row.topic), row, lambda error, _: reports.append(error))
        except KafkaException as error:
            return cast(KafkaError, error.args[0])
        deadline = time.monotonic() + _FULL_SECONDS
        while self._single.flush(_FLUSH_SLICE):
            self._on_wait()
            if time.monotonic() >= deadline:
                self._discard_single()
                return KafkaError(KafkaError._TIMED_OUT)
        return reports[0]

    def _discard_single(self) -> None:
        if self._single is not None:
            _purge(self._single)
            self._single = None


def _purge(producer: Producer) -> None:
    producer.purge(in_queue=True, in_flight=True, blocking=True)
    try:
        # Reports what is purged, and what was acknowledged before.
        while producer.poll(0):
            pass
    except (KafkaException, SystemError) as error:
        logger.info("producer discarded: %s", error)


def _client_error(error: KafkaException | SystemError) -> KafkaError:
    """Return the error for which a producer failed. With reports pending Python raises it as cause of a SystemError."""
    cause = error if isinstance(error, KafkaException) else error.__cause__
    return cast(KafkaError, cause.args[0]) if isinstance(cause, KafkaException) else KafkaError(KafkaError._FATAL)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
