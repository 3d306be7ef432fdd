"""Handling of one batch of one partition: effects in one transaction, dead letters for what cannot be handled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from common.postgres.lock_limits import limit_lock_waits
from common.processes.lifecycle import StopFlag, first_line
from common.processes.outages import is_database_outage, is_transient
from common.throttling import CallPostponed, CallThrottled

from .. import metrics
from ..errors import PoisonLimitExceeded, is_poison
from ..registry import ConsumerGroup, ReceivedMessage, Rejected
from . import inbox
from .dead_letters import write_dead_letters

logger = logging.getLogger(__name__)

Decoded = tuple[ReceivedMessage, Any]
Call = Callable[[Sequence[Any], StopFlag], Sequence[Exception | None]]

# Limits of messages in a row that fail. Past them the partition retries and writes no more dead letters; an operator or
# a restart allows as many again. Where the handler fails, the fault is probably in the service, and more dead letters
# would fail valid requests. For messages that are bad in themselves the limit is higher: a producer floods the topic
# with garbage.
HANDLER_FAILURES_IN_A_ROW = 20
BAD_MESSAGES_IN_A_ROW = 1000


class BatchInterrupted(Exception):
    """The process was asked to stop during a batch: its offset must not be committed."""


class BatchPostponed(Exception):
    """A provider postponed messages of a batch; all others are settled.

    ``messages`` are the postponed ones, in order; they are to be handled again after ``seconds``, those of ``error``.
    """

    def __init__(self, messages: Sequence[ReceivedMessage], error: CallPostponed) -> None:
        super().__init__(str(error))
        self.error = error
        self.seconds = error.seconds
        self.messages = list(messages)


class BatchHandler:
    """Handles batches of one consumer group, one at a time."""

    def __init__(self, group: ConsumerGroup) -> None:
        self._group = group
        # Positions of the messages that failed since the last success, without those that had a dead letter before.
        # A count would be wrong: a batch may be redelivered.
        self._handler_failures: set[tuple[str, int, int]] = set()
        self._bad: set[tuple[str, int, int]] = set()
        # Positions of messages on which the decoder fails with an error that does not prove them bad.
        self._undecodable: set[tuple[str, int, int]] = set()

    def handle(self, batch: Sequence[ReceivedMessage], stop: StopFlag) -> None:
        """Apply the effect of every message of ``batch``, or write its dead letter.

        Raises the error of an unavailable service (some messages may be settled: call again with the same batch),
        PoisonLimitExceeded, BatchPostponed, or BatchInterrupted.
        """
        started_at = time.monotonic()
        decoded, unreadable = self._decode(batch)
        postponed: list[tuple[ReceivedMessage, CallPostponed]] = []
        if self._group.call is not None:
            postponed = self._make_calls(self._group.call, self._not_yet_handled(decoded), stop)
            decoded = []
        self._settle(decoded, unreadable, stop)
        counted = self._number_counted(batch)
        if counted or not batch:
            handled = counted - self._number_counted([message for message, _ in postponed])
            seconds = time.monotonic() - started_at
            metrics.CONSUMED.labels(self._group.name).inc(handled)
            metrics.BATCH_SECONDS.labels(self._group.name).observe(seconds)
            metrics.MESSAGE_SECONDS.labels(self._group.name).inc(handled * seconds)
        if postponed:
            soonest = min((error for _, error in postponed), key=lambda error: error.seconds)
            raise BatchPostponed([message for message, _ in postponed], soonest)

    def _number_counted(self, messages: Sequence[ReceivedMessage]) -> int:
        is_counted = self._group.is_counted
        return len(messages) if is_counted is None else sum(map(is_counted, messages))

    def allow_dead_letters(self) -> None:
        """Allow as many failures in a row again as the limits say."""
        self._forget_failures()
        self._undecodable.clear()

    def handle_or_dead_letter(
        self, message: ReceivedMessage, stop: StopFlag, record: Callable[[Exception], None]
    ) -> bool:
        """Handle one message by itself; if that fails, dead-letter it, whatever the error, and return False.

        ``record`` gets the error within the transaction of the dead letter, and may refuse it by raising. Raises
        BatchInterrupted, what ``record`` raises, and the error of a dead letter that cannot be written.
        """
        try:
            self.handle([message], stop)
            return True
        except BatchInterrupted:
            raise
        except BatchPostponed as postponed:
            error: Exception = postponed.error
        except PoisonLimitExceeded as exceeded:
            error = exceeded.__cause__ if isinstance(exceeded.__cause__, Exception) else exceeded
        except Exception as failure:
            error = failure
        with self._transaction():
            record(error)
            self._write_dead_letters([Rejected(message, error)])
        return False

    def _decode(self, batch: Sequence[ReceivedMessage]) -> tuple[list[Decoded], list[Rejected]]:
        decoded: list[Decoded] = []
        unreadable: list[Rejected] = []
        for message in batch:
            try:
                if self._group.accepts(message):
                    decoded.append((message, self._group.decode(message)))
                self._undecodable.clear()
                # With `call`, only a successful call resets the failure streak.
                if self._group.call is None:
                    self._bad.clear()
            except Exception as error:
                if is_transient(error):
                    raise
                if is_poison(error):
                    unreadable.append(Rejected(message, error))
                    self._count_bad(message, error)
                else:
                    self._dead_letter(message, error, self._undecodable)
        return decoded, unreadable

    def _make_calls(
        self, call: Call, pending: Sequence[Decoded], stop: StopFlag
    ) -> list[tuple[ReceivedMessage, CallPostponed]]:
        """Make the calls of ``pending`` messages, outside of any transaction, and settle them after each attempt.

        Returns the postponed messages, in order: they never become dead letters, however often they are tried.
        """
        postponed: dict[UUID, CallPostponed] = {}
        order = [message for message, _ in pending]
        for attempt in range(1, settings.CONSUMER_MAX_ATTEMPTS + 1):
            if not pending:
                break
            outcomes = list(zip(pending, self._outcomes(call, pending, stop), strict=True))
            self._settle([item for item, error in outcomes if error is None], (), stop)
            failed = [(item, error) for item, error in outcomes if error is not None]
            if failed and stop:
                raise BatchInterrupted
            last = attempt == settings.CONSUMER_MAX_ATTEMPTS
            pending = []
            for item, error in failed:
                if isinstance(error, CallPostponed) and not self._skips_throttled(error):
                    postponed[item[0].inbox_id] = error
                elif last or is_poison(error):
                    self._dead_letter(item[0], error, self._handler_failures)
                else:
                    pending.append(item)
            if pending and stop.wait(settings.CONSUMER_BACKOFF_SECONDS):
                raise BatchInterrupted
        return [(message, postponed[message.inbox_id]) for message in order if message.inbox_id in postponed]

    def _skips_throttled(self, error: CallPostponed) -> bool:
        """Whether ``error`` counts as a failed try: in a group with ``log_only``, if the provider throttled the call.

        Otherwise the message is postponed, as after a call that only waits for the configured rate.
        """
        return self._group.log_only and isinstance(error, CallThrottled)

    def _outcomes(self, call: Call, pending: Sequence[Decoded], stop: StopFlag) -> Sequence[Exception | None]:
        try:
            return call([value for _, value in pending], stop)
        except Exception as error:
            if self._is_outage(error):
                raise
            if len(pending) == 1 or is_transient(error):
                return [error] * len(pending)
        # One message may trigger a fault of the service: call the others without it.
        middle = len(pending) // 2
        return [*self._outcomes(call, pending[:middle], stop), *self._outcomes(call, pending[middle:], stop)]

    def _is_outage(self, error: Exception) -> bool:
        """Whether the batch is retried without limit, until a service is back."""
        return is_database_outage(error) if self._group.log_only else is_transient(error)

    def _not_yet_handled(self, decoded: Sequence[Decoded]) -> list[Decoded]:
        seen = inbox.handled(self._group.name, [message.inbox_id for message, _ in decoded])
        return _first_of_each(decoded, lambda event_id: event_id not in seen)

    def _settle(self, decoded: Sequence[Decoded], unreadable: Sequence[Rejected], stop: StopFlag) -> None:
        """Apply the effects in one transaction, or in several if one of the messages fails."""
        if not decoded and not unreadable:
            return
        try:
            self._handle_with_retries(decoded, unreadable, stop)
        except Exception as error:
            if self._is_outage(error) or isinstance(error, PoisonLimitExceeded | BatchInterrupted) or not decoded:
                raise
            first = decoded[0][0]
            logger.warning("%s: batch from %s failed, bisecting it: %s", self._group.name, first, first_line(error))
            if unreadable:
                # The error may be that of their dead letters.
                self._handle_part(decoded, stop)
            else:
                self._isolate(decoded, error, stop)
            with self._transaction():
                self._write_dead_letters(unreadable)

    def _handle_with_retries(self, decoded: Sequence[Decoded], unreadable: Sequence[Rejected], stop: StopFlag) -> None:
        """Handle the batch in one transaction; an error that is neither transient nor poison is retried."""
        for attempt in range(1, settings.CONSUMER_MAX_ATTEMPTS + 1):
            try:
                with self._transaction():
                    self._apply(decoded)
                    self._write_dead_letters(unreadable)
                if decoded:
                    self._forget_failures()
                return
            except Exception as error:
                if self._is_outage(error) or is_poison(error) or attempt == settings.CONSUMER_MAX_ATTEMPTS:
                    raise
            if stop.wait(settings.CONSUMER_BACKOFF_SECONDS):
                raise BatchInterrupted

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction whose lock waits are limited, so that the other partitions of this consumer continue.

        Not with ``call``: the outcome of calls that were made must not be lost to a lock of seconds.
        """
        with transaction.atomic():
            if self._group.call is None:
                limit_lock_waits()
            yield

    def _apply(self, decoded: Sequence[Decoded]) -> None:
        """Apply the effects within the caller's transaction; with an inbox, only those of new events."""
        if self._group.inbox:
            new = inbox.claim(self._group.name, [message.inbox_id for message, _ in decoded])
            decoded = _first_of_each(decoded, lambda event_id: event_id in new)
        if decoded:
            self._group.handle([value for _, value in decoded])

    def _handle_part(self, decoded: Sequence[Decoded], stop: StopFlag) -> None:
        """Handle a part of a batch that failed, in its own transaction; if it fails too, isolate its messages."""
        if stop:
            raise BatchInterrupted
        try:
            with self._transaction():
                self._apply(decoded)
            self._forget_failures()
        except Exception as error:
            if self._is_outage(error):
                raise
            self._isolate(decoded, error, stop)

    def _isolate(self, decoded: Sequence[Decoded], error: Exception, stop: StopFlag) -> None:
        """Dead-letter the message of a batch that failed with ``error``; of several, handle the halves in order.

        A message alone is not handled again: ``CONSUMER_MAX_ATTEMPTS`` tries are all.
        """
        if len(decoded) == 1 or is_transient(error):
            for message, _ in decoded:
                self._dead_letter(message, error, self._handler_failures)
            return
        middle = len(decoded) // 2
        self._handle_part(decoded[:middle], stop)
        self._handle_part(decoded[middle:], stop)

    def _dead_letter(self, message: ReceivedMessage, error: Exception, failures: set[tuple[str, int, int]]) -> None:
        """Dead-letter a message and count it in ``failures``; a bad message counts in ``_bad`` instead."""
        with self._transaction():
            if not self._write_dead_letters([Rejected(message, error)]):
                return
            # Past the limit this raises within the transaction: no dead letter is written.
            if is_poison(error):
                self._count_bad(message, error)
                return
            failures.add(_position(message))
            if len(failures) > HANDLER_FAILURES_IN_A_ROW:
                raise PoisonLimitExceeded(
                    f"{len(failures)} messages in a row fail, the last with {type(error).__name__}:"
                    f" {first_line(error)}; correct the cause, or allow as many dead letters again (/ops/groups)"
                ) from error

    def _count_bad(self, message: ReceivedMessage, error: Exception) -> None:
        if self._group.log_only:
            return
        self._bad.add(_position(message))
        if len(self._bad) > BAD_MESSAGES_IN_A_ROW:
            raise PoisonLimitExceeded(
                f"{len(self._bad)} bad messages in a row, the last: {first_line(error)};"
                " stop their producer, and allow as many dead letters again (/ops/groups)"
            ) from error

    def _forget_failures(self) -> None:
        self._handler_failures.clear()
        self._bad.clear()

    def _write_dead_letters(self, rejected: Sequence[Rejected]) -> bool:
        """Write dead letters and run ``on_dead_letters``; returns whether one of them is new."""
        if not rejected:
            return False
        if self._group.log_only:
            self._log_and_skip(rejected)
            return False
        written = write_dead_letters(self._group.name, self._group.group_id, rejected)
        self._group.on_dead_letters(rejected)
        return bool(written)

    def _log_and_skip(self, rejected: Sequence[Rejected]) -> None:
        for item in rejected:
            logger.error("%s: %s logged and skipped: %s", self._group.name, item.message, first_line(item.error))
        count = partial(metrics.PASSED_OVER.labels(self._group.name).inc, len(rejected))
        transaction.on_commit(count, robust=True)
        if self._group.inbox:
            inbox.claim(self._group.name, [item.message.inbox_id for item in rejected])


def _first_of_each(decoded: Sequence[Decoded], wanted: Callable[[UUID], bool]) -> list[Decoded]:
    """Return the first message of each inbox id that is ``wanted``, in order."""
    by_id: dict[UUID, Decoded] = {}
    for item in decoded:
        if wanted(event_id := item[0].inbox_id):
            by_id.setdefault(event_id, item)
    return list(by_id.values())


def _position(message: ReceivedMessage) -> tuple[str, int, int]:
    return message.topic, message.partition, message.offset
