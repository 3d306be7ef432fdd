"""The consumer loop: poll, one transaction per partition and batch, then the offsets.

An offset is committed only after the transaction of its effects, at most ``COMMIT_SECONDS`` later: after a crash in
between the messages are redelivered, and every handler is safe to repeat. One consumer is one thread with its own Kafka
client and database connection.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from django.conf import settings

from common.processes.lifecycle import StopFlag, drop_connection
from common.processes.outages import is_transient

from ..client import PARTITION_EOF, Consumer, Message, TopicPartition, make_consumer
from ..errors import PoisonLimitExceeded
from ..lag import HeldPartition
from ..operating.heartbeat import ConsumerReport
from ..operating.pause_watch import PauseWatch
from ..registry import ConsumerGroup, ReceivedMessage, unprefixed
from ..subscriptions import Subscription
from .batch import BatchInterrupted, BatchPostponed
from .instructions import InstructedPartitions
from .lock_waits import cause_of
from .offset_commits import commit_offsets
from .partition_lag import STALE_SECONDS, PartitionLag
from .partition_report import report_partition
from .paused_partitions import PausedPartitions
from .received import received
from .retrying_partitions import Partition, RetryingPartitions
from .subscription_handler import SubscriptionHandler
from .topic_ids import TopicIds

logger = logging.getLogger(__name__)

# A commit waits for the broker, which takes as long as a small batch.
COMMIT_SECONDS = 0.2
# How long a poll waits for a message. The longer one costs less, and is for a consumer that runs on with no offsets to
# commit and no partition to try again; it bounds how soon a stop is noticed.
_POLL_SECONDS = 0.1
_IDLE_POLL_SECONDS = 0.5
_IDLE_BEFORE_EXIT = 1.0
_TICK_SECONDS = 1.0


class GroupConsumer:
    """Runs one consumer of a subscription. Must not be shared between threads."""

    def __init__(
        self,
        *groups: ConsumerGroup,
        batch_size: int | None = None,
        tick: Callable[[], None] = lambda: None,
        pauses: PauseWatch | None = None,
    ) -> None:
        """``groups``: one, or several that share an id. ``tick`` is called at every pass, see ``heartbeat``.

        ``pauses`` None: nothing is ever paused.
        """
        self._subscription = subscription = Subscription(groups)
        self._name = subscription.name
        self._handler = SubscriptionHandler(subscription)
        self._tick = tick
        self._batch_size = min(batch_size or settings.CONSUMER_BATCH_SIZE, subscription.largest_batch or sys.maxsize)
        self._topics = {topic: unprefixed(topic) for topic in subscription.topics}
        self._topic_ids = TopicIds(subscription.topics, self._name)
        self._buffers: dict[Partition, list[ReceivedMessage]] = defaultdict(list)
        self._assigned: set[Partition] = set()
        # The next offset of each partition that is read to its end.
        self._at_end: dict[Partition, int] = {}
        self._joined = False
        self._retrying = RetryingPartitions(self._name, subscription.reader_names)
        self._paused = PausedPartitions(subscription.names, pauses)
        self._instructed = InstructedPartitions(subscription, self._handler, self._retrying, self._paused)
        # By partition with postponed messages: the offset of the last of these, and the offset after the handled ones.
        self._postponed: dict[Partition, tuple[int, int]] = {}
        # The next offset to be handled, for the lag; and the offsets that the broker has committed.
        self._next_offsets: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._lag = PartitionLag(self._name, subscription.reader_names)
        # On the monotonic clock.
        self._polled_at: float | None = None
        # The next offsets of handled batches that are not committed yet.
        self._uncommitted: dict[Partition, int] = {}
        self._committed_at = float("-inf")
        self._ticked_at = float("-inf")
        self._idle_poll_seconds = _POLL_SECONDS

    def run(self, stop: StopFlag, *, until_idle: bool = False) -> None:
        """Consume until ``stop``, or with ``until_idle`` until every partition was at its end for a second.

        Paused partitions are not waited for: what is left of them stays for the next run.
        """
        if not until_idle:
            self._idle_poll_seconds = _IDLE_POLL_SECONDS
        while self._consume(stop, until_idle=until_idle):
            logger.warning("%s: a topic was made anew, it joins its group again", self._name)

    def _consume(self, stop: StopFlag, *, until_idle: bool) -> bool:
        """Be a member of the group until the end of the run, or until a topic was made anew; returns whether it was.

        A client of Kafka goes on from where it was in the old topic, or never reads again.
        """
        groups = self._subscription.groups
        consumer = make_consumer(self._subscription.group_id, calls_out=[group.call is not None for group in groups])
        consumer.subscribe(
            self._subscription.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        idle_since = time.monotonic()
        try:
            while not stop:
                if self._topic_ids.has_changed():
                    return True
                worked = self.poll_and_handle(consumer, stop)
                if worked or not self._is_drained():
                    idle_since = time.monotonic()
                elif until_idle and time.monotonic() - idle_since >= _IDLE_BEFORE_EXIT:
                    self._commit_ends(consumer)
                    if self._paused:
                        logger.warning("%s: ends without the messages of paused: %s", self._name, self._paused)
                    break
            self._commit_handled(consumer)
            return False
        finally:
            consumer.close()
            # A client whose topics were deleted under it does not revoke them.
            self._on_lost(consumer, [TopicPartition(*partition) for partition in self._assigned])
            self._topic_ids.forget()
            self._joined = False
            drop_connection()

    def poll_and_handle(self, consumer: Consumer, stop: StopFlag) -> bool:
        """Make one pass: fetch, handle each partition's batch, commit offsets. Returns whether there was a batch."""
        self._tick()
        self._fetch(consumer)
        self._obey_instructions(consumer, stop)
        worked = False
        for partition in self._ready():
            if stop:
                break
            if self._paused.is_wanted(partition):
                continue
            worked = True
            messages = self._buffers[partition]
            batch = messages[: self._batch_size]
            is_handled = self._handle(consumer, partition, batch, stop)
            if is_handled:
                end = self._end_of(partition, batch)
                self._postponed.pop(partition, None)
                del messages[: len(batch)]
                self._uncommitted[partition] = self._next_offsets[partition] = end
            # After each batch, not after the pass: batches that call a provider take seconds each.
            if time.monotonic() - self._committed_at >= COMMIT_SECONDS:
                self._commit_handled(consumer)
            if not is_handled:
                # Poll first: failures of many partitions in a row, seconds each, would take longer than a poll may.
                break
        if not worked:
            self._commit_handled(consumer)
        if time.monotonic() - self._ticked_at >= _TICK_SECONDS:
            self._ticked_at = time.monotonic()
            self._commit_ends(consumer)
            self._measure_lag(consumer)
        return worked

    def _ready(self) -> list[Partition]:
        """Return the partitions with buffered messages that may be tried now; of the retrying ones only the first due.

        It comes last, since its try may wait for seconds while the others have work.
        """
        due = [
            item
            for item, messages in self._buffers.items()
            if messages and item not in self._paused and self._retrying.is_due(item)
        ]
        retrying = sorted((item for item in due if item in self._retrying), key=self._retrying.retry_at)
        return [*sorted(item for item in due if item not in self._retrying), *retrying[:1]]

    def _pause_full_partitions(self, consumer: Consumer) -> None:
        """Fetch no more of a retrying partition that has buffered a whole batch.

        Until then later messages join its batch: one failing message alone looks like a service that is down, but not
        among others that succeed.
        """
        for partition, messages in self._buffers.items():
            if partition in self._retrying and len(messages) >= self._batch_size:
                consumer.pause([TopicPartition(*partition)])

    def _is_drained(self) -> bool:
        running = {partition for partition in self._assigned if partition not in self._paused}
        return self._joined and running <= self._at_end.keys() and not any(map(self._has_buffered, running))

    def _fetch(self, consumer: Consumer) -> None:
        self._polled_at = time.monotonic()
        self._paused.apply(consumer, self._assigned)
        self._pause_full_partitions(consumer)
        if self._ready():
            # There is work in the buffers: poll without waiting, which also keeps the group membership.
            messages = consumer.consume(self._batch_size, timeout=0)
        else:
            is_idle = not self._uncommitted and not any(self._buffers.values())
            first = consumer.poll(self._idle_poll_seconds if is_idle else _POLL_SECONDS)
            if first is None:
                return
            messages = [first, *consumer.consume(self._batch_size - 1, timeout=0)] if self._batch_size > 1 else [first]
        for message in messages:
            self._buffer(message)

    def _buffer(self, message: Message) -> None:
        topic, number = message.topic(), message.partition()
        error = message.error()
        if topic is None or number is None:
            if error is not None:
                logger.warning("%s: kafka: %s", self._name, error.str())
            return
        partition = (topic, number)
        if error is None:
            # A message fetched before its partition was revoked may still come out of the client's queue.
            if partition in self._assigned:
                arrived = received(message, self._topics[topic], number)
                self._at_end.pop(partition, None)
                self._buffers[partition].append(arrived)
                self._next_offsets.setdefault(partition, arrived.offset)
        elif error.code() == PARTITION_EOF:
            if partition in self._assigned and (end := message.offset()) is not None:
                self._at_end[partition] = end
        else:
            logger.warning("%s: kafka: %s", self._name, error.str())

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._topic_ids.correct(consumer, partitions):
            consumer.incremental_assign(partitions)
        self._joined = True
        self._assigned |= {(item.topic, item.partition) for item in partitions}
        logger.info("%s: %d partitions assigned", self._name, len(self._assigned))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what was handled, which ends before any rebalance is served, and drop the buffered messages."""
        self._commit_handled(consumer)
        self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Drop the buffered messages: the new owner reads them again from the committed offset."""
        for item in partitions:
            partition = (item.topic, item.partition)
            self._assigned.discard(partition)
            for state in (
                self._buffers,
                self._at_end,
                self._next_offsets,
                self._uncommitted,
                self._committed,
                self._postponed,
            ):
                state.pop(partition, None)
            self._retrying.forget(partition)
            self._paused.forget(partition)
            self._lag.forget(partition)
            self._handler.forget(partition)

    def _handle(
        self, consumer: Consumer, partition: Partition, batch: Sequence[ReceivedMessage], stop: StopFlag
    ) -> bool:
        """Handle a batch; returns False if its offset must not be committed, and it is retried after a pause.

        An operator's pause interrupts it as a stop does: calls to a provider may last longer than a pause may wait.
        """
        try:
            self._handler.handle(batch, stop.or_when(lambda: self._paused.is_wanted(partition)))
        except BatchInterrupted:
            return False
        except BatchPostponed as postponed:
            self._postpone(consumer, partition, batch, postponed)
            return False
        except Exception as error:
            drop_connection()
            self._retry_later(partition, batch, error)
            return False
        if self._retrying.resume(partition):
            consumer.resume([TopicPartition(*partition)])
        return True

    def _obey_instructions(self, consumer: Consumer, stop: StopFlag) -> None:
        for partition, instruction in self._paused.instructions(self._assigned):
            first = self._first_of(partition)
            is_at_end = partition in self._at_end
            if not self._instructed.obey(partition, instruction, first, stop, is_at_end=is_at_end) or first is None:
                continue
            self._uncommitted[partition] = self._next_offsets[partition] = self._end_of(partition, [first])
            if first.offset == self._postponed.get(partition, (-1, 0))[0]:
                del self._postponed[partition]
            del self._buffers[partition][0]
            if self._retrying.resume(partition):
                consumer.resume([TopicPartition(*partition)])

    def _postpone(
        self, consumer: Consumer, partition: Partition, batch: Sequence[ReceivedMessage], postponed: BatchPostponed
    ) -> None:
        """Keep the postponed messages at the head of the partition's buffer, where later messages join their batch.

        Logs nothing: ``http_calls`` logs when a provider throttles.
        """
        messages = postponed.messages
        if len(messages) < len(batch):
            self._postponed[partition] = messages[-1].offset, self._end_of(partition, batch)
            self._buffers[partition][: len(batch)] = messages
            if self._retrying.resume(partition):
                consumer.resume([TopicPartition(*partition)])
            if messages[0].offset != self._next_offsets[partition]:
                self._uncommitted[partition] = self._next_offsets[partition] = messages[0].offset
        self._retrying.retry_later(partition, str(messages[0]), str(postponed), postponed.seconds)

    def _end_of(self, partition: Partition, batch: Sequence[ReceivedMessage]) -> int:
        """Return the offset after ``batch``; if it ends with postponed messages, after the handled ones behind them."""
        last, end = self._postponed.get(partition, (-1, 0))
        return end if batch[-1].offset == last else batch[-1].offset + 1

    def _retry_later(self, partition: Partition, batch: Sequence[ReceivedMessage], error: Exception) -> None:
        """Retry this partition later; no message is dropped, and the other partitions continue."""
        cause = self._handler.name_cause(cause_of(error))
        is_at_limit = isinstance(error, PoisonLimitExceeded)
        self._retrying.retry_later(partition, str(batch[0]), cause, is_at_limit=is_at_limit)
        if is_transient(error):
            logger.warning("%s: %s waits: %s", self._name, batch[0], cause)
        elif is_at_limit:
            logger.error(
                "%s: %s waits, nothing is dropped: %s", self._name, batch[0], self._handler.name_cause(str(error))
            )
        else:
            logger.error("%s: %s waits, nothing is dropped", self._name, batch[0], exc_info=error)

    def _commit_handled(self, consumer: Consumer) -> None:
        if self._uncommitted:
            self._commit(consumer, self._uncommitted)
            self._uncommitted.clear()
        self._committed_at = time.monotonic()

    def _commit(self, consumer: Consumer, next_offsets: Mapping[Partition, int]) -> None:
        self._committed.update(commit_offsets(consumer, next_offsets, self._topic_ids, self._name))

    def _commit_ends(self, consumer: Consumer) -> None:
        """Commit the end of partitions, past offsets without a readable message, so that these do not count as lag.

        Such offsets are transaction markers, messages of aborted transactions, and messages removed by compaction.
        """
        ends = {
            partition: end
            for partition, end in self._at_end.items()
            if not self._has_buffered(partition) and self._committed.get(partition) != end
        }
        if ends:
            self._next_offsets.update(ends)
            self._commit(consumer, ends)

    def _has_buffered(self, partition: Partition) -> bool:
        """Whether fetched messages are not handled yet, which is always so for a retrying partition."""
        return bool(self._buffers.get(partition))

    def _first_of(self, partition: Partition) -> ReceivedMessage | None:
        """Return the first message that is fetched and not handled, None if there is none."""
        first = self._buffers.get(partition, [])[:1]
        return first[0] if first else None

    def _measure_lag(self, consumer: Consumer) -> None:
        for partition, next_offset in self._next_offsets.items():
            if partition in self._paused:
                # Its end is known only by fetching.
                continue
            # The end that the client has cached; a request to the broker would cost a round trip.
            _, end = consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            is_fetched = self._has_buffered(partition) or partition in self._at_end
            self._lag.measure(partition, next_offset=next_offset, end=end, is_fetched=is_fetched)

    def report(self, now: float) -> ConsumerReport:
        """Return what the heartbeat says of this consumer at ``now``, in seconds since 1970.

        It is called in another thread: each read is one operation on a collection, and none uses the client, which may
        be closed at any time. Every group of the subscription has what it reads.
        """
        partitions = [
            self._report_partition(group, partition, now)
            for partition in sorted(self._assigned.copy())
            for group in self._subscription.reader_names(partition[0])
        ]
        return ConsumerReport(self._subscription.names, self._polled_at, partitions)

    def _report_partition(self, group: str, partition: Partition, now: float) -> HeldPartition:
        return report_partition(
            group,
            partition,
            next_offset=self._next_offsets.get(partition),
            end_offset=self._lag.end(partition),
            lag_ms=self._lag_ms(partition, now),
            first=self._first_of(partition),
            retrying=self._retrying,
            paused=self._paused,
        )

    def _lag_ms(self, partition: Partition, now: float) -> int | None:
        first = self._first_of(partition)
        if first is not None and first.timestamp > 0:
            return max(0, round(now * 1000) - first.timestamp)
        if self._polled_at is None or time.monotonic() - self._polled_at > STALE_SECONDS:
            return None
        if partition in self._at_end:
            return 0
        next_offset = self._next_offsets.get(partition)
        return None if next_offset is None else self._lag.unfetched_ms(partition, next_offset)
