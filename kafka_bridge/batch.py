"""One batch of one partition: to its effect in one transaction, and what cannot be handled to its dead letter."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.db import transaction

from . import metrics
from .dead_letters import bury
from .errors import PoisonFlood, PoisonMessage, is_poison, is_transient
from .lifecycle import StopFlag, first_line
from .registry import ConsumerGroup, ReceivedMessage, Rejected, event_types_of

logger = logging.getLogger(__name__)

Decoded = tuple[ReceivedMessage, Any]

# So many messages in a row that a handler fails on point at a fault of ours: burying on would fail requests that nobody
# has a reason to fail. Of messages that are bad in themselves it takes more: somebody floods the topic with garbage.
# The partition waits then; starting the consumer again goes on for as many.
HANDLER_FAILURES_IN_A_ROW = 20
BAD_MESSAGES_IN_A_ROW = 1000


class BatchAbandoned(Exception):
    """The process was asked to stop between two tries of a batch; its offset must not be committed."""


class BatchHandler:
    """Handles batches of one consumer group, one at a time."""

    def __init__(self, group: ConsumerGroup) -> None:
        self._group = group
        # Places of failed messages since the last one that did not fail. A batch may come again: hence places, not
        # a count, and no place whose dead letter is there already.
        self._handler_failures: set[tuple[str, int, int]] = set()
        self._bad: set[tuple[str, int, int]] = set()

    def handle(self, batch: Sequence[ReceivedMessage], stop: StopFlag) -> None:
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
                self._bad.clear()
            except Exception as error:
                if not is_poison(error):
                    raise
                unreadable.append(Rejected(message, error))
                self._count_bad(message, error)
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
                if decoded:
                    self._forget_failures()
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
            self._forget_failures()
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
        with transaction.atomic():
            if not self._bury([Rejected(message, error)]):
                return
            # Raises within the transaction: the one that is too many is not buried.
            if is_poison(error):
                self._count_bad(message, error)
                return
            self._handler_failures.add(_place(message))
            if len(self._handler_failures) > HANDLER_FAILURES_IN_A_ROW:
                raise PoisonFlood(
                    f"{len(self._handler_failures)} messages in a row fail, the last with {type(error).__name__}:"
                    f" {first_line(error)}; mend the cause and start the consumer again"
                ) from error

    def _count_bad(self, message: ReceivedMessage, error: Exception) -> None:
        self._bad.add(_place(message))
        if len(self._bad) > BAD_MESSAGES_IN_A_ROW:
            raise PoisonFlood(
                f"{len(self._bad)} bad messages in a row, the last: {first_line(error)};"
                " start the consumer again to bury them and go on"
            ) from error

    def _forget_failures(self) -> None:
        self._handler_failures.clear()
        self._bad.clear()

    def _bury(self, rejected: Sequence[Rejected]) -> bool:
        """Write dead letters and end what hangs on them; returns whether there is a new one."""
        if not rejected:
            return False
        fresh = bury(self._group.name, self._group.group_id, rejected)
        self._group.on_dead_letters(rejected)
        return bool(fresh)


def _place(message: ReceivedMessage) -> tuple[str, int, int]:
    return message.topic, message.partition, message.offset
