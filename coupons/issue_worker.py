"""The worker's loop: a batch of ids from the list, their requests from the outbox, and on as for Kafka's consumer."""

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
_LOOK_AROUND_SECONDS = 5.0
# Younger ones may be on their way from the commit to the list.
_LOST_AFTER_SECONDS = 5.0
_MOST_PUSHED = 20_000
# How this list is told from a partition, among the figures of consumers.
_LABELS = (ISSUE.name, TRANSPORT, "-1")


class IssueWorker:
    """Issues what is in the worker's list. One worker is one thread; any number of them may run."""

    def __init__(self, *, batch_size: int | None = None, tick: Callable[[], None] = lambda: None) -> None:
        """``tick`` is called at every pass of the loop, see ``heartbeat``."""
        self._batch_size = batch_size or settings.CONSUMER_BATCH_SIZE
        self._tick = tick
        self._list = RedisQueue()
        self._handler = BatchHandler(ISSUE)
        self._looked_after_others_at = float("-inf")
        self._looked_for_lost_at = float("-inf")

    def run(self, stop: StopFlag) -> None:
        """Work until ``stop``, then put back what is in hand."""
        idle_pause, fault_pause = _BUSY_PAUSE, 0.0
        try:
            while not stop:
                try:
                    worked = self.take_and_handle(stop)
                except BatchInterrupted:
                    break
                except Exception as error:
                    fault_pause = min(fault_pause * 2 or settings.CONSUMER_BACKOFF_SECONDS, _MAX_PAUSE)
                    self._hold(error, fault_pause)
                    stop.wait(fault_pause)
                    continue
                if fault_pause:
                    fault_pause = 0.0
                    metrics.PAUSED.labels(*_LABELS).set(0)
                idle_pause = _BUSY_PAUSE if worked else min(idle_pause * 2, _IDLE_PAUSE)
                if not worked:
                    stop.wait(idle_pause)
        finally:
            self._put_back()
            drop_connection()

    def take_and_handle(self, stop: StopFlag) -> bool:
        """One pass: take a batch, handle it, finish it; without one, look for what the list has lost.

        Returns whether there was anything. Raises BatchAbandoned, and the error of a service that is away or of a batch
        that cannot be handled: it remains in hand, and the next pass begins with it.
        """
        self._tick()
        self._look_after_others()
        taken, left = self._list.claim(self._batch_size)
        metrics.LAG.labels(*_LABELS).set(len(taken) + left)
        if not taken:
            return self._look_for_lost()
        messages = _messages(taken)
        if messages:
            self._handler.handle(messages, stop)
        self._list.ack(taken)
        return True

    def _look_after_others(self) -> None:
        if time.monotonic() - self._looked_after_others_at < _LOOK_AROUND_SECONDS:
            return
        if number := self._list.requeue_of_dead_workers():
            logger.warning("issue worker: %d requests were in the hands of a worker that died", number)
        self._looked_after_others_at = time.monotonic()

    def _look_for_lost(self) -> bool:
        if time.monotonic() - self._looked_for_lost_at < _LOOK_AROUND_SECONDS:
            return False
        self._looked_for_lost_at = time.monotonic()
        return enqueue_again(_LOST_AFTER_SECONDS, _MOST_PUSHED) > 0

    def _hold(self, error: Exception, pause: float) -> None:
        """What is in hand waits, with nothing dropped."""
        drop_connection()
        metrics.PAUSED.labels(*_LABELS).set(1)
        if is_transient(error) or isinstance(error, RedisError):
            logger.warning("issue worker: waits %.1f s: %s", pause, first_line(error))
        elif isinstance(error, PoisonLimitExceeded):
            logger.error("issue worker: waits %.1f s, nothing is dropped: %s", pause, error)
        else:
            logger.error("issue worker: waits %.1f s, nothing is dropped", pause, exc_info=error)

    def _put_back(self) -> None:
        try:
            if number := self._list.requeue():
                logger.info("issue worker: %d requests are left to the others", number)
        except RedisError as error:
            logger.warning("issue worker: what was in hand is found by the others: %s", error)


def _messages(taken: Sequence[bytes]) -> list[ReceivedMessage]:
    """The messages of those ids whose requests wait for a decision, in order, each once."""
    request_ids = [request_id for text in dict.fromkeys(taken) if (request_id := _request_id(text))]
    decided = find_decided(request_ids)
    waiting = [request_id for request_id in request_ids if request_id not in decided]
    messages = messages_of_transport(TRANSPORT, waiting)
    if decided:
        logger.info("issue worker: %d requests were decided already", len(decided))
        # Of one whose row came after its end, as from a process that hung at the door.
        with transaction.atomic():
            reservations.release(decided)
    if strange := len(set(taken)) - len(decided) - len(messages):
        logger.warning("issue worker: dropped %d entries of the list that are no request of the worker's", strange)
    return [messages[request_id] for request_id in waiting if request_id in messages]


def _request_id(text: bytes) -> UUID | None:
    try:
        return UUID(text.decode())
    except ValueError:
        return None
