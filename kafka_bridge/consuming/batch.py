"""One batch of one partition: to its effect in one transaction, and what cannot be handled to its dead letter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_database_outage, is_transient
from common.throttling import CallPostponed, CallThrottled

from .. import metrics
from ..errors import PoisonLimitExceeded, is_poison
from ..registry import ConsumerGroup, ReceivedMessage, Rejected, is_of_types
from . import inbox
from .dead_letters import write_dead_letters

logger = logging.getLogger(__name__)

Decoded = tuple[ReceivedMessage, Any]
Call = Callable[[Sequence[Any], StopFlag], Sequence[Exception | None]]

# So many messages in a row that a handler fails on point at a fault of ours: burying on would fail requests that nobody
# has a reason to fail. Of messages that are bad in themselves it takes more: somebody floods the topic with garbage.
# The partition waits then; starting the consumer again goes on for as many.
HANDLER_FAILURES_IN_A_ROW = 20
BAD_MESSAGES_IN_A_ROW = 1000


class BatchInterrupted(Exception):
    """The process was asked to stop between two tries of a batch; its offset must not be committed."""


class BatchPostponed(Exception):
    """Messages of a batch that a provider wants later; all others are settled.

    ``left`` are those messages, in order; ``seconds`` is when to handle them again.
    """

    def __init__(self, postponed: Sequence[tuple[ReceivedMessage, CallPostponed]]) -> None:
        error = min((error for _, error in postponed), key=lambda error: error.seconds)
        super().__init__(str(error))
        self.seconds = error.seconds
        self.left = [message for message, _ in postponed]


class BatchHandler:
    """Handles batches of one consumer group, one at a time."""

    def __init__(self, group: ConsumerGroup) -> None:
        self._group = group
        # Places of failed messages since the last one that did not fail. A batch may come again: hence places, not
        # a count, and no place whose dead letter is there already.
        self._handler_failures: set[tuple[str, int, int]] = set()
        self._bad: set[tuple[str, int, int]] = set()
        # Those on which the decoder fails without their being bad.
        self._undecodable: set[tuple[str, int, int]] = set()

    def handle(self, batch: Sequence[ReceivedMessage], stop: StopFlag) -> None:
        """Bring every message of ``batch`` to its effect or to a dead letter.

        Raises the error of a service that is away (some messages may be done: call again with the same batch),
        PoisonFlood, BatchPostponed, or BatchAbandoned.
        """
        started_at = time.monotonic()
        decoded, unreadable = self._decode(batch)
        postponed: list[tuple[ReceivedMessage, CallPostponed]] = []
        if self._group.call is not None:
            postponed = self._call_out(self._group.call, self._not_handled_yet(decoded), stop)
            decoded = []
        self._settle(decoded, unreadable, stop)
        metrics.CONSUMED.labels(self._group.name).inc(len(batch) - len(postponed))
        metrics.BATCH_SECONDS.labels(self._group.name).observe(time.monotonic() - started_at)
        if postponed:
            raise BatchPostponed(postponed)

    def _decode(self, batch: Sequence[ReceivedMessage]) -> tuple[list[Decoded], list[Rejected]]:
        decoded: list[Decoded] = []
        unreadable: list[Rejected] = []
        for message in batch:
            try:
                if is_of_types(message, self._group.event_types):
                    decoded.append((message, self._group.decode(message)))
                self._undecodable.clear()
                # What is to be called may still be refused: there only a success ends the run.
                if self._group.call is None:
                    self._bad.clear()
            except Exception as error:
                if is_transient(error):
                    raise
                if is_poison(error):
                    unreadable.append(Rejected(message, error))
                    self._count_bad(message, error)
                else:
                    self._bury_culprit(message, error, self._undecodable)
        return decoded, unreadable

    def _call_out(
        self, call: Call, waiting: Sequence[Decoded], stop: StopFlag
    ) -> list[tuple[ReceivedMessage, CallPostponed]]:
        """Have the calls of ``waiting`` made, outside of any transaction, and settle each as soon as it is done.

        Returns what is postponed, in order: no number of tries makes it a dead letter.
        """
        postponed: dict[UUID, CallPostponed] = {}
        order = [message for message, _ in waiting]
        for attempt in range(1, settings.CONSUMER_MAX_ATTEMPTS + 1):
            if not waiting:
                break
            outcomes = list(zip(waiting, self._outcomes(call, waiting, stop), strict=True))
            self._settle([item for item, error in outcomes if error is None], (), stop)
            failed = [(item, error) for item, error in outcomes if error is not None]
            if failed and stop:
                raise BatchInterrupted
            last = attempt == settings.CONSUMER_MAX_ATTEMPTS
            waiting = []
            for item, error in failed:
                if isinstance(error, CallPostponed) and not self._passes_over(error):
                    postponed[item[0].inbox_id] = error
                elif last or is_poison(error):
                    self._bury_culprit(item[0], error, self._handler_failures)
                else:
                    waiting.append(item)
            if waiting and stop.wait(settings.CONSUMER_BACKOFF_SECONDS):
                raise BatchInterrupted
        return [(message, postponed[message.inbox_id]) for message in order if message.inbox_id in postponed]

    def _passes_over(self, error: CallPostponed) -> bool:
        """Whether the group waits for no provider that throttles. To wait for a turn is not to fail."""
        return self._group.log_only and isinstance(error, CallThrottled)

    def _outcomes(self, call: Call, waiting: Sequence[Decoded], stop: StopFlag) -> Sequence[Exception | None]:
        try:
            return call([value for _, value in waiting], stop)
        except Exception as error:
            if self._waits_for(error):
                raise
            if len(waiting) == 1 or is_transient(error):
                return [error] * len(waiting)
        # A fault of ours that one of them brings out: the others are called without it.
        middle = len(waiting) // 2
        return [*self._outcomes(call, waiting[:middle], stop), *self._outcomes(call, waiting[middle:], stop)]

    def _waits_for(self, error: Exception) -> bool:
        """Whether the batch waits until somebody's service is back."""
        return is_database_outage(error) if self._group.log_only else is_transient(error)

    def _not_handled_yet(self, decoded: Sequence[Decoded]) -> list[Decoded]:
        seen = inbox.handled(self._group.name, [message.inbox_id for message, _ in decoded])
        return _first_of_each(decoded, lambda event_id: event_id not in seen)

    def _settle(self, decoded: Sequence[Decoded], unreadable: Sequence[Rejected], stop: StopFlag) -> None:
        """The transaction of the effects, or several if one of the messages is a culprit."""
        if not decoded and not unreadable:
            return
        try:
            self._handle_with_retries(decoded, unreadable, stop)
        except Exception as error:
            if self._waits_for(error) or isinstance(error, PoisonLimitExceeded | BatchInterrupted) or not decoded:
                raise
            first = decoded[0][0]
            logger.warning("%s: %s and on: looking for the culprit: %s", self._group.name, first, first_line(error))
            self._bisect(decoded, stop)
            with transaction.atomic():
                self._bury(unreadable)

    def _handle_with_retries(self, decoded: Sequence[Decoded], unreadable: Sequence[Rejected], stop: StopFlag) -> None:
        """The whole batch in one transaction; an error that is neither transient nor poison is tried again."""
        for attempt in range(1, settings.CONSUMER_MAX_ATTEMPTS + 1):
            try:
                with transaction.atomic():
                    self._apply(decoded)
                    self._bury(unreadable)
                if decoded:
                    self._forget_failures()
                return
            except Exception as error:
                if self._waits_for(error) or is_poison(error) or attempt == settings.CONSUMER_MAX_ATTEMPTS:
                    raise
            if stop.wait(settings.CONSUMER_BACKOFF_SECONDS):
                raise BatchInterrupted

    def _apply(self, decoded: Sequence[Decoded]) -> None:
        """The effect, within the caller's transaction; with an inbox, of what is new."""
        if self._group.inbox:
            new = inbox.claim(self._group.name, [message.inbox_id for message, _ in decoded])
            decoded = _first_of_each(decoded, lambda event_id: event_id in new)
        if decoded:
            self._group.handle([value for _, value in decoded])

    def _bisect(self, decoded: Sequence[Decoded], stop: StopFlag) -> None:
        """Handle in halves, each in its own transaction and in order, until the culprits stand alone."""
        if not decoded:
            return
        if stop:
            raise BatchInterrupted
        try:
            with transaction.atomic():
                self._apply(decoded)
            self._forget_failures()
        except Exception as error:
            if self._waits_for(error):
                raise
            if len(decoded) == 1 or is_transient(error):
                for message, _ in decoded:
                    self._bury_culprit(message, error, self._handler_failures)
                return
            middle = len(decoded) // 2
            self._bisect(decoded[:middle], stop)
            self._bisect(decoded[middle:], stop)

    def _bury_culprit(self, message: ReceivedMessage, error: Exception, failures: set[tuple[str, int, int]]) -> None:
        """Dead-letter a message; ``failures`` are those in a row that it belongs to unless it is bad in itself."""
        with transaction.atomic():
            if not self._bury([Rejected(message, error)]):
                return
            # Raises within the transaction: the one that is too many is not buried.
            if is_poison(error):
                self._count_bad(message, error)
                return
            failures.add(_place(message))
            if len(failures) > HANDLER_FAILURES_IN_A_ROW:
                raise PoisonLimitExceeded(
                    f"{len(failures)} messages in a row fail, the last with {type(error).__name__}:"
                    f" {first_line(error)}; mend the cause and start the consumer again"
                ) from error

    def _count_bad(self, message: ReceivedMessage, error: Exception) -> None:
        if self._group.log_only:
            return
        self._bad.add(_place(message))
        if len(self._bad) > BAD_MESSAGES_IN_A_ROW:
            raise PoisonLimitExceeded(
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
        if self._group.log_only:
            self._pass_over(rejected)
            return False
        fresh = write_dead_letters(self._group.name, self._group.group_id, rejected)
        self._group.on_dead_letters(rejected)
        return bool(fresh)

    def _pass_over(self, rejected: Sequence[Rejected]) -> None:
        for item in rejected:
            logger.error("%s: %s is passed over: %s", self._group.name, item.message, first_line(item.error))
        metrics.PASSED_OVER.labels(self._group.name).inc(len(rejected))
        if self._group.inbox:
            inbox.claim(self._group.name, [item.message.inbox_id for item in rejected])


def _first_of_each(decoded: Sequence[Decoded], wanted: Callable[[UUID], bool]) -> list[Decoded]:
    """Of the messages whose inbox id is ``wanted`` the first of each id, in order."""
    by_id: dict[UUID, Decoded] = {}
    for item in decoded:
        if wanted(event_id := item[0].inbox_id):
            by_id.setdefault(event_id, item)
    return list(by_id.values())


def _place(message: ReceivedMessage) -> tuple[str, int, int]:
    return message.topic, message.partition, message.offset
