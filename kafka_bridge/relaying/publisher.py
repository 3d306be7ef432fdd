"""Sends outbox rows to Kafka in order, until each is acknowledged or refused, and reports topics that accept none."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import msgspec

from common.processes.lifecycle import StopFlag

from ..client import REFUSED_FOR_GOOD, KafkaError, KafkaException, Message, Producer, make_producer
from ..cloudevents import cloud_event_headers, decode_headers
from ..errors import TopicsUnavailable
from ..registry import ReceivedMessage, prefixed
from .topic_problems import TopicProblem, find_problems, problem_of_error

logger = logging.getLogger(__name__)

# The columns of an OutboxRecord. Event id and time are read as text, as the headers need them: parsed into objects they
# cost more than the rest of the row.
COLUMNS = """
    id, event_id::text, event_type, topic, key, payload, headers, traceparent, (created_at AT TIME ZONE 'UTC')::text
"""
_FLUSH_SLICE = 0.2
# How long a stopping process waits for outstanding acknowledgements.
_STOP_GRACE = 5.0
# A batch is acknowledged within milliseconds. A leader election takes longer than this and is reported as a stall.
STALL_SECONDS = 3.0
_STALL_AGAIN_SECONDS = 30.0

# Called with the topics that accept messages and the problems of those that do not; topic names include the prefix.
Report = Callable[[Collection[str], Sequence[TopicProblem]], None]


class PublishInterrupted(Exception):
    """The process was asked to stop while messages were not acknowledged yet."""


class OutboxRecord(msgspec.Struct, frozen=True, gc=False):
    """A row of the outbox as it is read for publishing; ``created_at`` in UTC.

    Excluded from garbage collection (``gc=False``): scanning thousands of rows repeatedly took a third of the read.
    """

    id: int
    event_id: str
    event_type: str
    topic: str
    # The driver returns memoryviews, hence ``bytes()`` wherever these are used.
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
        """Return the row as a message that never reached its topic: partition -1, offset the row id."""
        return ReceivedMessage(
            topic=self.topic,
            partition=-1,
            offset=self.id,
            timestamp=0,
            key=None if self.key is None else bytes(self.key),
            value=None if self.payload is None else bytes(self.payload),
            headers=tuple((name, _bytes(value)) for name, value in self.wire_headers()),
        )


class Publisher:
    """A producer of outbox rows. After ``send`` has raised, call ``discard`` before the next ``send``."""

    def __init__(self, *, report: Report, on_wait: Callable[[], None] = lambda: None) -> None:
        """``report`` is called after every send and during a stall; ``on_wait`` repeatedly while waiting for brokers.

        Both may raise: the send ends with that error.
        """
        self._report = report
        self._on_wait = on_wait
        self._producer: Producer | None = None
        self._unacknowledged: Counter[str] = Counter()
        self._failures: dict[str, KafkaError] = {}
        self._refusal: KafkaError | None = None

    @property
    def refusal(self) -> KafkaException:
        """The broker's error for which the last ``send`` returned False."""
        return KafkaException(self._refusal)

    def send(self, rows: Sequence[OutboxRecord], stop: StopFlag) -> bool:
        """Produce ``rows`` in order and wait for acknowledgement; return False if the broker refused a row for good.

        Raises TopicsUnavailable for any other failure and PublishInterrupted if ``stop`` was set first; in both cases
        some of the rows may be on their topics and others not.
        """
        topics = {topic: prefixed(topic) for topic in {row.topic for row in rows}}
        self._unacknowledged = Counter()
        self._failures = {}
        self._refusal = None
        if self._producer is None:
            self._producer = make_producer()
        producer = self._producer
        for row in rows:
            try:
                self._produce(producer, topics[row.topic], row)
            except KafkaException as error:
                # The client itself refuses a message above message.max.bytes, before queueing it.
                self._fail(topics[row.topic], error.args[0])
                break
        self._flush(producer, stop)
        problems = [problem_of_error(topic, error) for topic, error in self._failures.items()]
        self._report_topics(problems)
        if problems:
            raise TopicsUnavailable("; ".join(map(str, problems)))
        return self._refusal is None

    def discard(self) -> None:
        """Purge unacknowledged messages, so that none is sent after its row has been read again."""
        if self._producer is not None:
            self._producer.purge(in_queue=True, in_flight=True, blocking=True)
            self._producer.flush(0)
            self._producer = None

    def _produce(self, producer: Producer, topic: str, row: OutboxRecord) -> None:
        while True:
            try:
                producer.produce(
                    topic,
                    value=None if row.payload is None else bytes(row.payload),
                    key=None if row.key is None else bytes(row.key),
                    headers=row.wire_headers(),
                    on_delivery=self._on_delivery,
                )
            except BufferError:
                # Only possible when the settings make the producer queue smaller than a batch.
                producer.poll(_FLUSH_SLICE)
            else:
                self._unacknowledged[topic] += 1
                return

    def _flush(self, producer: Producer, stop: StopFlag) -> None:
        """Wait without limit until every message is acknowledged or refused; after ``stop`` at most 5 s."""
        give_up_at: float | None = None
        stalls_at = time.monotonic() + STALL_SECONDS
        while producer.flush(_FLUSH_SLICE):
            # Taken before on_wait, which queries the database: time that the database takes is not a stall of Kafka.
            now = time.monotonic()
            self._on_wait()
            if stop:
                give_up_at = give_up_at or now + _STOP_GRACE
                if now >= give_up_at:
                    raise PublishInterrupted
            elif now >= stalls_at:
                self._report_stall(producer)
                stalls_at = time.monotonic() + _STALL_AGAIN_SECONDS

    def _report_stall(self, producer: Producer) -> None:
        if not (unacknowledged := +self._unacknowledged):
            return
        problems = find_problems(producer, unacknowledged)
        for problem in problems:
            logger.warning("%s; %d of its messages wait", problem, self._unacknowledged[problem.topic])
        self._report_topics(problems)

    def _report_topics(self, problems: Sequence[TopicProblem]) -> None:
        accepting = {topic for topic, number in self._unacknowledged.items() if not number} - self._failures.keys()
        self._report(accepting, problems)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        topic = message.topic() or ""
        self._unacknowledged[topic] -= 1
        if error is not None:
            self._fail(topic, error)

    def _fail(self, topic: str, error: KafkaError) -> None:
        if error.code() in REFUSED_FOR_GOOD:
            self._refusal = self._refusal or error
        else:
            self._failures.setdefault(topic, error)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
