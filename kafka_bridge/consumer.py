"""The consumer loop: poll, one transaction per partition and batch, then the offsets.

An offset is committed only after the transaction of its effects, so a crash in between means the same messages
again, which every handler survives. One consumer is one thread with its own Kafka client and database connection.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

from django.conf import settings
from django.db import transaction

from . import metrics
from .client import PARTITION_EOF, Consumer, KafkaException, Message, TopicPartition, make_consumer
from .contracts import Headers
from .dead_letters import bury
from .errors import PoisonFlood, PoisonMessage, is_poison, is_transient
from .lifecycle import StopFlag, drop_connection, first_line
from .registry import ConsumerGroup, ReceivedMessage, Rejected, event_types_of, unprefixed

logger = logging.getLogger(__name__)

Partition = tuple[str, int]
Decoded = tuple[ReceivedMessage, Any]

_POLL_SECONDS = 0.1
_IDLE_BEFORE_EXIT = 1.0
_MAX_PAUSE = 10.0
# So many messages in a row that fail one after the other point at a fault of ours (or at a flood of garbage): burying
# on would fail requests that nobody has a reason to fail. The consumer pauses instead; starting it again goes on.
HANDLER_FAILURES_IN_A_ROW = 20
UNREADABLE_IN_A_ROW = 1000


class BatchAbandoned(Exception):
    """The process was asked to stop between two tries of a batch; nothing of it was committed to Kafka."""


class GroupConsumer:
    """Runs one consumer group in one thread. The caller must not share it between threads."""

    def __init__(
        self, group: ConsumerGroup, *, batch_size: int | None = None, turned: Callable[[], None] = lambda: None
    ) -> None:
        """``turned`` is called at every pass of the loop, see ``heartbeat``."""
        self._group = group
        self._turned = turned
        self._batch_size = batch_size or settings.CONSUMER_BATCH_SIZE
        self._buffers: dict[Partition, list[ReceivedMessage]] = defaultdict(list)
        self._assigned: set[Partition] = set()
        self._at_end: set[Partition] = set()
        self._joined = False
        # The offsets that failed since the last message that did not: kept by offset, since a batch may come again.
        self._culprits: set[tuple[Partition, int]] = set()
        self._unreadable: set[tuple[Partition, int]] = set()

    def run(self, stop: StopFlag, *, until_idle: bool = False) -> None:
        """Consume until ``stop``, or with ``until_idle`` until every partition was at its end for a second."""
        consumer = make_consumer(self._group.group_id, end_events=until_idle)
        consumer.subscribe(
            self._group.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        idle_since = time.monotonic()
        try:
            while not stop:
                worked = self.poll_and_handle(consumer, stop)
                if worked or not self._joined or self._at_end != self._assigned:
                    idle_since = time.monotonic()
                elif until_idle and time.monotonic() - idle_since >= _IDLE_BEFORE_EXIT:
                    break
        finally:
            consumer.close()
            drop_connection()

    def poll_and_handle(self, consumer: Consumer, stop: StopFlag) -> bool:
        """One pass: fetch, handle each partition's batch, commit its offset. Returns whether there was a message."""
        self._turned()
        self._fetch(consumer)
        worked = False
        for partition in sorted(self._buffers):
            messages = self._buffers.get(partition)
            if stop or not messages:
                continue
            worked = True
            batch = messages[: self._batch_size]
            if not self._handle_until_done(consumer, partition, batch, stop):
                continue
            # A rebalance while the batch was retried may have taken the buffer away.
            if self._buffers.get(partition) is messages:
                del messages[: len(batch)]
                self._commit(consumer, partition, batch[-1].offset + 1)
        return worked

    # -- Kafka's side ---------------------------------------------------------------------------------------------

    def _fetch(self, consumer: Consumer) -> None:
        if any(self._buffers.values()):
            # There is work left over: only look for more, and keep the membership alive.
            messages = consumer.consume(self._batch_size, timeout=0)
        else:
            first = consumer.poll(_POLL_SECONDS)
            if first is None:
                return
            messages = [first, *consumer.consume(self._batch_size - 1, timeout=0)] if self._batch_size > 1 else [first]
        for message in messages:
            self._sort_in(message)

    def _sort_in(self, message: Message) -> None:
        topic, number = message.topic(), message.partition()
        error = message.error()
        if topic is None or number is None:
            if error is not None:
                logger.warning("%s: kafka: %s", self._group.name, error.str())
            return
        partition = (topic, number)
        if error is None:
            # A message fetched before its partition was revoked may still come out of the client's queue.
            if partition in self._assigned:
                self._at_end.discard(partition)
                self._buffers[partition].append(_received(message, topic, number))
        elif error.code() == PARTITION_EOF:
            if partition in self._assigned:
                self._at_end.add(partition)
        else:
            logger.warning("%s: kafka: %s", self._group.name, error.str())

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined = True
        self._assigned |= {(item.topic, item.partition) for item in partitions}
        logger.info("%s: %d partitions assigned", self._group.name, len(self._assigned))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop what was fetched and not handled: its new owner reads it again from the committed offset."""
        for item in partitions:
            partition = (item.topic, item.partition)
            self._assigned.discard(partition)
            self._at_end.discard(partition)
            self._buffers.pop(partition, None)
            with contextlib.suppress(KeyError):
                metrics.LAG.remove(self._group.name, item.topic, str(item.partition))

    def _commit(self, consumer: Consumer, partition: Partition, next_offset: int) -> None:
        """Commit synchronously. A failure loses nothing: the messages come again and are known."""
        topic, number = partition
        try:
            committed = consumer.commit(offsets=[TopicPartition(topic, number, next_offset)], asynchronous=False)
        except KafkaException as error:
            logger.warning("%s: offset of %s[%d] not committed: %s", self._group.name, topic, number, first_line(error))
            return
        for item in committed or ():
            if item.error is not None:
                logger.warning("%s: offset of %s not committed: %s", self._group.name, item, item.error.str())
        # As far as the client has heard of the partition's end; asking the broker would cost a round trip.
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
        metrics.LAG.labels(self._group.name, topic, str(number)).set(max(0, end - next_offset))

    # -- the database's side --------------------------------------------------------------------------------------

    def _handle_until_done(
        self, consumer: Consumer, partition: Partition, batch: Sequence[ReceivedMessage], stop: StopFlag
    ) -> bool:
        """Handle a batch, however long the services it needs are away; False if it must not be committed."""
        pause = settings.CONSUMER_BACKOFF_SECONDS
        while True:
            try:
                self.handle_batch(batch, stop)
                return True
            except BatchAbandoned:
                return False
            except Exception as error:
                drop_connection()
                if isinstance(error, PoisonFlood) or not is_transient(error):
                    logger.error(
                        "%s: %s paused, nothing is dropped: %s", self._group.name, batch[0], first_line(error),
                        exc_info=None if isinstance(error, PoisonFlood) else error,
                    )  # fmt: skip
                else:
                    logger.warning("%s: %s waits: %s", self._group.name, batch[0], first_line(error))
            self._pause(consumer, pause, stop)
            pause = min(pause * 2, _MAX_PAUSE)
            if stop or partition not in self._assigned:
                return False

    def _pause(self, consumer: Consumer, seconds: float, stop: StopFlag) -> None:
        """Wait without leaving the group: the client is polled with every partition paused."""
        resume_at = time.monotonic() + seconds
        metrics.PAUSED.labels(self._group.name).set(1)
        while not stop and time.monotonic() < resume_at:
            self._turned()
            # Anew each time: a rebalance may have brought a partition that is not paused.
            assignment = consumer.assignment()
            consumer.pause(assignment)
            message = consumer.poll(_POLL_SECONDS)
            if message is not None:
                self._sort_in(message)
        consumer.resume(consumer.assignment())
        metrics.PAUSED.labels(self._group.name).set(0)

    def handle_batch(self, batch: Sequence[ReceivedMessage], stop: StopFlag) -> None:
        """Bring every message of ``batch`` to its effect or to a dead letter.

        Raises the error of a service that is away (some messages may be done: call again with the same batch),
        PoisonFlood, or BatchAbandoned.
        """
        started_at = time.monotonic()
        decoded, unreadable = self._decode(batch)
        try:
            self._handle_with_retries(decoded, unreadable, stop)
        except Exception as error:
            if is_transient(error) or isinstance(error, PoisonFlood | BatchAbandoned):
                raise
            logger.warning("%s: %s and on: looking for the culprit: %s", self._group.name, batch[0], first_line(error))
            self._bisect(decoded, stop)
            with transaction.atomic():
                self._bury(unreadable)
        metrics.CONSUMED.labels(self._group.name).inc(len(batch))
        metrics.BATCH_SECONDS.labels(self._group.name).observe(time.monotonic() - started_at)

    def _decode(self, batch: Sequence[ReceivedMessage]) -> tuple[list[Decoded], list[Rejected]]:
        decoded: list[Decoded] = []
        unreadable: list[Rejected] = []
        for message in batch:
            try:
                if self._concerns_group(message):
                    decoded.append((message, self._group.decode(message)))
                self._unreadable.clear()
            except Exception as error:
                if not is_poison(error):
                    raise
                unreadable.append(Rejected(message, error))
                self._unreadable.add(_position(message))
                if len(self._unreadable) > UNREADABLE_IN_A_ROW:
                    raise PoisonFlood(
                        f"{len(self._unreadable)} unreadable messages in a row, the last: {first_line(error)};"
                        " start the consumer again to bury them and go on"
                    ) from error
        return decoded, unreadable

    def _concerns_group(self, message: ReceivedMessage) -> bool:
        """Whether the message is of a type that the group handles; PoisonMessage for a type nobody knows."""
        header = message.header("ce_type")
        if header is None:
            return True
        event_type = header.decode()
        if event_type in self._group.event_types:
            return True
        if event_type in event_types_of(message.topic):
            return False
        raise PoisonMessage(f"unknown event type or version {event_type[:100]!r}")

    def _handle_with_retries(self, decoded: Sequence[Decoded], unreadable: Sequence[Rejected], stop: StopFlag) -> None:
        """The whole batch in one transaction; an error that is neither transient nor poison is tried again."""
        for attempt in range(1, settings.CONSUMER_MAX_ATTEMPTS + 1):
            try:
                with transaction.atomic():
                    if decoded:
                        self._group.handle([value for _, value in decoded])
                    self._bury(unreadable)
                self._culprits.clear()
                return
            except Exception as error:
                if is_transient(error) or is_poison(error) or attempt == settings.CONSUMER_MAX_ATTEMPTS:
                    raise
            if stop.wait(settings.CONSUMER_BACKOFF_SECONDS):
                raise BatchAbandoned

    def _bisect(self, decoded: Sequence[Decoded], stop: StopFlag) -> None:
        """Handle in halves, each in its own transaction and in order, until the culprits stand alone."""
        if not decoded:
            return
        if stop:
            raise BatchAbandoned
        try:
            with transaction.atomic():
                self._group.handle([value for _, value in decoded])
            self._culprits.clear()
        except Exception as error:
            if is_transient(error):
                raise
            if len(decoded) == 1:
                self._bury_culprit(decoded[0][0], error)
                return
            middle = len(decoded) // 2
            self._bisect(decoded[:middle], stop)
            self._bisect(decoded[middle:], stop)

    def _bury_culprit(self, message: ReceivedMessage, error: Exception) -> None:
        self._culprits.add(_position(message))
        if len(self._culprits) > HANDLER_FAILURES_IN_A_ROW:
            raise PoisonFlood(
                f"{len(self._culprits)} messages in a row fail, the last with {type(error).__name__}:"
                f" {first_line(error)}; mend the cause and start the consumer again"
            ) from error
        with transaction.atomic():
            self._bury([Rejected(message, error)])

    def _bury(self, rejected: Sequence[Rejected]) -> None:
        if not rejected:
            return
        for item in bury(self._group.name, self._group.group_id, rejected):
            metrics.DEAD_LETTERS.labels(self._group.name).inc()
            logger.error("%s: dead letter %s: %s", self._group.name, item.message, first_line(item.error))
        self._group.on_dead_letters(rejected)


def _received(message: Message, topic: str, partition: int) -> ReceivedMessage:
    offset = message.offset()
    assert offset is not None
    return ReceivedMessage(
        topic=unprefixed(topic),
        partition=partition,
        offset=offset,
        timestamp=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=cast(Headers, tuple(message.headers() or ())),
    )


def _position(message: ReceivedMessage) -> tuple[Partition, int]:
    return (message.topic, message.partition), message.offset
