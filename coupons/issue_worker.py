"""The issue worker: claims request ids from the Redis queue, reads the outbox rows and handles them like a consumer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from django.conf import settings
from django.db import transaction
from redis.exceptions import RedisError

from common.processes.lifecycle import StopFlag, drop_connection, first_line
from common.processes.outages import is_transient
from kafka_bridge import metrics
from kafka_bridge.consuming.batch import BatchHandler, BatchInterrupted
from kafka_bridge.errors import PoisonLimitExceeded
from kafka_bridge.outbox.transports import messages_of_transport
from kafka_bridge.registry import ReceivedMessage

from .admission import reservations
from .consumer_groups import ISSUE
from .issuance.finish import find_decided
from .redis_queue import TRANSPORT
from .redis_queue.enqueue import enqueue_again
from .redis_queue.queue import RedisQueue

logger = logging.getLogger(__name__)

_BUSY_PAUSE = 0.005
_IDLE_PAUSE = 0.1
_MAX_PAUSE = 10.0
_CHECK_SECONDS = 5.0
# Younger requests may be between their commit and the queue.
_LOST_AFTER_SECONDS = 5.0
_MAX_ENQUEUED = 20_000
# The labels of the Redis queue in the metrics of consumers, where others have topic and partition.
_LABELS = (ISSUE.name, TRANSPORT, "-1")


class IssueWorker:
    """Issues the requests of the Redis queue. A worker is one thread; any number of workers may run."""

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        tick: Callable[[], None] = lambda: None,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """``tick`` is called in every pass of the loop, see ``heartbeat``. While ``is_paused`` nothing is claimed."""
        self._batch_size = batch_size or settings.CONSUMER_BATCH_SIZE
        self._tick = tick
        self._is_paused = is_paused
        self._queue = RedisQueue()
        self._handler = BatchHandler(ISSUE)
        self._requeued_at = float("-inf")
        self._enqueued_lost_at = float("-inf")

    def run(self, stop: StopFlag) -> None:
        """Handle batches until ``stop``, then requeue the claimed ids; while paused wait, with nothing claimed."""
        idle_pause, failure_pause = _BUSY_PAUSE, 0.0
        stop_or_pause = stop.or_when(self._is_paused)
        try:
            while not stop:
                if self._is_paused():
                    self._requeue()
                    self._wait_while_paused(stop)
                    continue
                try:
                    has_handled = self.claim_and_handle(stop_or_pause)
                except BatchInterrupted:
                    continue
                except Exception as error:
                    failure_pause = min(failure_pause * 2 or settings.CONSUMER_BACKOFF_SECONDS, _MAX_PAUSE)
                    self._report_failure(error, failure_pause)
                    stop_or_pause.wait(failure_pause)
                    continue
                if failure_pause:
                    failure_pause = 0.0
                    metrics.PAUSED.labels(*_LABELS).set(0)
                idle_pause = _BUSY_PAUSE if has_handled else min(idle_pause * 2, _IDLE_PAUSE)
                if not has_handled:
                    stop.wait(idle_pause)
        finally:
            self._requeue()
            drop_connection()

    def _wait_while_paused(self, stop: StopFlag) -> None:
        while self._is_paused() and not stop:
            self._tick()
            stop.wait(_IDLE_PAUSE)

    def claim_and_handle(self, stop: StopFlag) -> bool:
        """Claim a batch, handle it and acknowledge it; if the queue is empty, enqueue lost requests again.

        Returns whether there was anything to do. Raises BatchInterrupted, and the error of an unavailable service or of
        a batch that cannot be handled: the batch stays claimed, and the next pass handles it first.
        """
        self._tick()
        self._requeue_of_dead_workers()
        claimed, remaining = self._queue.claim(self._batch_size)
        metrics.LAG.labels(*_LABELS).set(len(claimed) + remaining)
        if not claimed:
            return self._enqueue_lost()
        messages = _messages(claimed)
        if messages:
            self._handler.handle(messages, stop)
        self._queue.ack(claimed)
        return True

    def _requeue_of_dead_workers(self) -> None:
        if time.monotonic() - self._requeued_at < _CHECK_SECONDS:
            return
        if count := self._queue.requeue_of_dead_workers():
            logger.warning("issue worker: %d requests claimed by a dead worker were requeued", count)
        self._requeued_at = time.monotonic()

    def _enqueue_lost(self) -> bool:
        if time.monotonic() - self._enqueued_lost_at < _CHECK_SECONDS:
            return False
        self._enqueued_lost_at = time.monotonic()
        return enqueue_again(_LOST_AFTER_SECONDS, _MAX_ENQUEUED) > 0

    def _report_failure(self, error: Exception, pause: float) -> None:
        """Log the failure. The batch stays claimed and is retried after ``pause`` seconds."""
        drop_connection()
        metrics.PAUSED.labels(*_LABELS).set(1)
        if is_transient(error) or isinstance(error, RedisError):
            logger.warning("issue worker: retries in %.1f s: %s", pause, first_line(error))
        elif isinstance(error, PoisonLimitExceeded):
            logger.error("issue worker: retries in %.1f s, nothing is dropped: %s", pause, error)
        else:
            logger.error("issue worker: retries in %.1f s, nothing is dropped", pause, exc_info=error)

    def _requeue(self) -> None:
        try:
            if count := self._queue.requeue():
                logger.info("issue worker: %d requests were requeued for other workers", count)
        except RedisError as error:
            logger.warning(
                "issue worker: the claimed requests were not requeued, another worker requeues them: %s", error
            )


def _messages(claimed: Sequence[bytes]) -> list[ReceivedMessage]:
    """Return the messages of the undecided requests among the claimed ids, in order, each once."""
    request_ids = [request_id for text in dict.fromkeys(claimed) if (request_id := _request_id(text))]
    decided = find_decided(request_ids)
    undecided = [request_id for request_id in request_ids if request_id not in decided]
    messages = messages_of_transport(TRANSPORT, undecided)
    if decided:
        logger.info("issue worker: %d requests were already decided", len(decided))
        # A process that hung in the accept API may insert a reservation after the request was finished.
        with transaction.atomic():
            reservations.release(decided)
    if dropped := len(set(claimed)) - len(decided) - len(messages):
        logger.warning(
            "issue worker: dropped %d entries of the Redis queue that are not requests on this transport", dropped
        )
    return [messages[request_id] for request_id in undecided if request_id in messages]


def _request_id(text: bytes) -> UUID | None:
    try:
        return UUID(text.decode())
    except ValueError:
        return None
